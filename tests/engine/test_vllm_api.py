"""Every name of vLLM that the adapter uses exists in the pinned version, with the parameters that it passes."""

import inspect

import pytest

pytestmark = pytest.mark.engine


def test_every_imported_name_exists() -> None:
    import ast
    import importlib
    from pathlib import Path

    from serve_app.engine import completions, launch, running
    from serve_app.engine import vllm as adapter

    sources = [ast.parse(Path(inspect.getfile(one)).read_text()) for one in (adapter, completions, launch, running)]
    names = [
        (node.module, alias.name)
        for source in sources
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "vllm"
        for alias in node.names
    ]
    assert len(names) > 10
    for module, name in names:
        assert hasattr(importlib.import_module(str(module)), name), f"{module}.{name}"


def test_the_option_classes_have_the_names_that_are_read_from_their_source() -> None:
    import dataclasses

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs

    from serve_app.engine.options import known_options

    known = known_options()
    fields = {field.name for field in dataclasses.fields(AsyncEngineArgs) if not field.name.startswith("_")}
    assert {name for name, kind in known.items() if kind == "engine"} == fields
    assert {field.name for field in dataclasses.fields(FrontendArgs)} - fields <= known.keys()
