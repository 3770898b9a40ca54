"""What the pages say is tried: each block of each page is run as a reader would, against simulated replicas.

Real vLLM would answer the same requests (tests/test_cluster.py), and take minutes to start.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.client.replicas import ReplicaClient
from serve_app.dispatch.render import CharacterRenderer
from serve_app.serving.launch.local import local_serve
from serve_app.serving.launch.simulated import simulate
from tests.conftest import own_document
from tests.docs.blocks import LANGUAGES, PROSE, ROOT, Block, Reader, blocks, pages
from tests.fakes import FakePool

MOST_SKIPPED = 0.1
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture(scope="session")
def simulated_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """config.yaml's server, but with a simulated engine and a port of its own."""
    folder = tmp_path_factory.mktemp("docs")
    document = own_document(folder)
    simulate(document)
    document["applications"][0]["deployments"][0]["num_replicas"] = 1
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    with local_serve(folder / "config.yaml", log=folder / "serve.log", on_wait=print) as base_url:
        yield base_url


@pytest.fixture
def reader(tmp_path: Path, simulated_url: str, monkeypatch: pytest.MonkeyPatch) -> Reader:
    """In a folder that has what a clone has, where a page needs it."""
    for name in ("config.yaml", "config.gpu.yaml", "config.two-models.yaml", "k8s", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)

    def connect(*arguments: Any, **named: Any) -> ReplicaClient:
        return ReplicaClient(FakePool(["a", "b"]), renderer=CharacterRenderer())

    # From this process the cluster would be looked for by Ray, which may find another one on this machine.
    monkeypatch.setattr(ReplicaClient, "connect", connect)
    return Reader(tmp_path, simulated_url)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.timeout(300)  # the first page waits for the server
@pytest.mark.parametrize("page", [page for page in pages() if blocks(page)], ids=named)
def test_every_block_of_the_page_runs(page: Path, reader: Reader) -> None:
    for block in blocks(page):
        try:
            reader.run(block)
        except BaseException as error:
            error.add_note(f"at {block.place}")
            raise


def test_every_example_is_used_by_a_page() -> None:
    text = "".join(page.read_text() for page in pages())
    assert [path.name for path in (ROOT / "examples").iterdir() if f"examples/{path.name}" not in text] == []


def test_few_blocks_are_skipped_and_each_says_why() -> None:
    found = [block for page in pages() for block in blocks(page)]
    done = Counter(block.directive if block.directive in ("skip", "parse") else "run" for block in found)
    print(f"\ncode blocks: {len(found)}; run {done['run']}, parsed {done['parse']}, skipped {done['skip']}")
    assert done["skip"] <= MOST_SKIPPED * len(found)
    assert [block.place for block in found if block.directive == "skip" and len(block.argument) < 10] == []


@pytest.mark.parametrize("page", pages(), ids=named)
def test_every_fence_has_a_language_that_is_checked_or_is_prose(page: Path) -> None:
    fences = re.findall(r"(?m)^ *(```+)(.*)$", page.read_text())
    opened = [language.strip() for _, language in fences[::2]]
    assert set(opened) <= {*LANGUAGES, *PROSE}
    assert len(fences) % 2 == 0


@pytest.mark.parametrize("page", pages(), ids=named)
def test_every_link_leads_to_a_file_and_heading_that_is_there(page: Path) -> None:
    for target in LINK.findall(re.sub(r"(?s)```.*?```", "", page.read_text())):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), target


def test_every_page_is_reached_from_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    missing = [
        named(page)
        for page in pages()
        if page.parent != ROOT and page.name != "README.md" and str(page.relative_to(ROOT / "docs")) not in index
    ]
    assert missing == []


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    heads = re.findall(r"(?m)^#+ (.*)$", page.read_text())
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_a_block_that_is_wrong_is_found(tmp_path: Path) -> None:
    reader = Reader(tmp_path, "http://127.0.0.1:1")

    def block(language: str, text: str, directive: str = "", argument: str = "") -> Block:
        return Block(ROOT / "README.md", 1, language, text, directive, argument)

    for wrong in (
        block("python", "1 / 0"),
        block("bash", "serve-app ctr --no-such-flag", "parse"),
        block("bash", "make no-such-target"),
        block("bash", "python -m benchmarks.nothing"),
        block("bash", "false"),
        block("yaml", "max_body_byte: 1", "model", "AccessSettings"),
        block("yaml", "{a: 1}"),
        block("json", '{"id": 1}', "model", "JobSpec"),
    ):
        with pytest.raises(BaseException):  # noqa: B017, PT011  # a usage error, an exit, whatever it is
            reader.run(wrong)
