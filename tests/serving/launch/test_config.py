"""Bad input gets a clear error before anything starts, and loses nothing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from serve_app.errors import BadSettings, ModelNotFound, NotEnoughMemory, StoreError, UnknownOption
from serve_app.serving.launch import config as serving_config
from serve_app.serving.launch.config import ServeConfig, set_store
from serve_app.settings import DriverSettings, ReplicaSettings

ROOT = Path(__file__).parents[3]
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def write(tmp_path: Path, free_port: int) -> Callable[[Edit], ServeConfig]:
    """config.yaml with one edit, on a free port, loaded."""

    def make(edit: Edit = lambda document: None) -> ServeConfig:
        document = yaml.safe_load((ROOT / "config.yaml").read_text())
        document["http_options"]["port"] = free_port
        set_store(document, str(tmp_path / "runs"))
        edit(document)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(document))
        return ServeConfig.load(path)

    return make


def engine(**options: Any) -> Edit:
    return lambda document: document["applications"][0]["args"]["engine"].update(options)


@pytest.mark.parametrize("name", ["config.yaml", "config.gpu.yaml"])
def test_the_shipped_files_are_what_serve_and_our_settings_accept(name: str) -> None:
    document = yaml.safe_load((ROOT / name).read_text())
    ServeDeploySchema.model_validate(document)
    loaded = ServeConfig.load(ROOT / name)
    assert loaded.replicas == 2
    assert loaded.engines[0].settings.engine["tensor_parallel_size"] == 2


def test_the_default_is_fit_to_run(write: Callable[..., ServeConfig]) -> None:
    write().check()


def test_an_unknown_engine_option_names_the_nearest(write: Callable[..., ServeConfig]) -> None:
    with pytest.raises(UnknownOption, match="did you mean 'max_num_seqs'"):
        write(engine(max_num_seq=4)).check()


def test_an_unknown_argument_names_its_place_and_the_nearest(write: Callable[..., ServeConfig]) -> None:
    with pytest.raises(BadSettings, match=r"yaml:\d+: applications\[1\]\.args\.chunk_row: .*did you mean 'chunk_rows'"):
        write(lambda document: document["applications"][1]["args"].update(chunk_row=4))


def test_access_of_every_application_is_checked(write: Callable[..., ServeConfig]) -> None:
    def application(document: dict[str, Any], name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(app for app in document["applications"] if app["name"] == name)
        return found.setdefault("args", {})  # type: ignore[no-any-return]

    with pytest.raises(BadSettings, match=r"applications\[3\]\.args\.max_bodybytes: .*did you mean 'max_body_bytes'"):
        write(lambda document: application(document, "batches").update(max_bodybytes=1))
    for name in ("files", "batches"):
        access = {"key_files": ["/nonexistent.yaml"]}
        args = access if name == "batches" else {"access": access}
        with pytest.raises(BadSettings, match="nonexistent"):
            write(lambda document, name=name, args=args: application(document, name).update(args)).check()


def test_tensor_parallelism_that_does_not_divide_the_heads_says_what_does(write: Callable[..., ServeConfig]) -> None:
    with pytest.raises(
        BadSettings, match=r"tensor_parallel_size 5 does not divide the model's 12 .*\[1, 2, 3, 4, 6, 12\]"
    ):
        write(engine(tensor_parallel_size=5)).check()


@pytest.mark.parametrize("model", ["/nowhere/model", "no such model", "./x"])
def test_a_model_that_is_not_there_is_named(write: Callable[..., ServeConfig], model: str) -> None:
    with pytest.raises(ModelNotFound, match=f"'{model}' is neither a folder"):
        write(engine(model=model)).check()


def test_a_folder_without_a_model_is_named(write: Callable[..., ServeConfig], tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"has no config\.json"):
        write(engine(model=str(tmp_path))).check()


def test_too_little_memory_is_said_before_the_start(
    write: Callable[..., ServeConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_config, "memory_bytes", lambda: (4 << 30, 8 << 30))
    with pytest.raises(NotEnoughMemory, match="4 workers need"):
        write().check()


def test_a_port_in_use_is_named(write: Callable[..., ServeConfig]) -> None:
    config = write()
    with socket.create_server((config.host, config.port)), pytest.raises(BadSettings, match=f"port {config.port} on"):
        config.check()


def test_a_store_that_cannot_be_written_is_named(write: Callable[..., ServeConfig], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write in"):
        write(lambda d: set_store(d, str(tmp_path / "file" / "runs"))).check()


@pytest.mark.parametrize(
    ("text", "problem"), [("a: [", "is not YAML"), ("", "no fields"), ("applications:", "no application named")]
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(BadSettings, match=problem):
        ServeConfig.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["demo", "--population-size", "0"], "--population-size must be at least 1"),
        (["demo", "--ad", " "], "--ad is empty"),
        (["demo", "--ad-platform", "radio"], "--ad-platform 'radio' is unknown"),
        (["demo", "--out", "/dev/null/runs"], "cannot write in /dev/null/runs"),
        (["ctr", "--ad", "x", "--base-url", "http://127.0.0.1:9"], "http://127.0.0.1:9 does not answer"),
        (["validate", "/nowhere.yaml"], "/nowhere.yaml: No such file"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path, arguments: list[str], problem: str) -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("serve-app")), *arguments],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "COLUMNS": "300"}, check=False,
    )  # fmt: skip
    assert result.returncode != 0
    assert problem in result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_settings_are_data_that_travel() -> None:
    for settings in (ReplicaSettings(engine={"model": "m"}), DriverSettings()):
        assert type(settings).model_validate(json.loads(settings.model_dump_json())) == settings


def test_a_store_by_url_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    document = yaml.safe_load((ROOT / "config.yaml").read_text())
    set_store(document, "s3://nobody/runs?endpoint_override=127.0.0.1:9&scheme=http")
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(StoreError, match="nobody"):
        ServeConfig.load(path).check(port=False)
