"""Files over their HTTP routes, as Serve mounts them, on a real disk and on an S3 server."""

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai.types import FileDeleted, FileObject

from serve_app.driver.batches.files import ORPHAN_S, FileStore, new_file_id, output_file_id, stamp
from serve_app.driver.batches.routes import files_app
from serve_app.errors import BadSettings, NoSuchFile

LINES = b'{"custom_id": "1"}\n{"custom_id": "2"}\n'


class Clock:
    """Unix time that only moves when told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def files(tmp_path: Path, clock: Clock) -> FileStore:
    return FileStore(str(tmp_path), now=clock)


@pytest.fixture
async def client(files: FileStore) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(files_app(files), root_path="/v1/files")
    async with httpx.AsyncClient(transport=transport, base_url="http://test/v1") as client:
        yield client


async def upload(client: httpx.AsyncClient, content: bytes = LINES, **fields: str) -> dict[str, Any]:
    form = {"purpose": "batch", **fields}
    answer = await client.post("/files", data=form, files={"file": ("my rows.jsonl", content)})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def add(files: FileStore, content: bytes = LINES, purpose: str = "batch", **options: Any) -> str:
    return files.add(io.BytesIO(content), "rows.jsonl", purpose, **options).id


async def test_an_uploaded_file_is_an_openai_file_object_and_comes_back_byte_by_byte(client: httpx.AsyncClient) -> None:
    stored = await upload(client)
    FileObject.model_validate(stored, strict=True)
    assert (stored["filename"], stored["bytes"], stored["purpose"]) == ("my rows.jsonl", len(LINES), "batch")
    assert (await client.get(f"/files/{stored['id']}")).json() == stored
    content = await client.get(f"/files/{stored['id']}/content")
    assert content.content == LINES
    assert content.headers["content-length"] == str(len(LINES))
    assert "my%20rows.jsonl" in content.headers["content-disposition"]


async def test_the_routes_answer_with_and_without_a_slash_at_the_end(client: httpx.AsyncClient) -> None:
    for path in ("/files", "/files/"):
        assert (await client.get(path)).json() == {
            "object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "part"),
    [("bytes=0-3", (0, 4)), ("bytes=5-", (5, 38)), ("bytes=-4", (34, 38)), ("bytes=-99", (0, 38)),
     ("bytes=30-999", (30, 38)), ("bytes=0-0", (0, 1))],
)  # fmt: skip
async def test_a_part_of_a_file_comes_by_its_range(
    client: httpx.AsyncClient, asked: str, part: tuple[int, int]
) -> None:
    path = f"/files/{(await upload(client))['id']}/content"
    whole = await client.get(path)
    assert (whole.status_code, whole.headers["accept-ranges"]) == (200, "bytes")
    answer = await client.get(path, headers={"range": asked, "if-range": whole.headers["etag"]})
    assert (answer.status_code, answer.content) == (206, LINES[slice(*part)])
    assert answer.headers["content-range"] == f"bytes {part[0]}-{part[1] - 1}/{len(LINES)}"
    assert int(answer.headers["content-length"]) == part[1] - part[0]


async def test_a_range_behind_the_end_is_told_the_size_and_an_unknown_one_gets_all(client: httpx.AsyncClient) -> None:
    path = f"/files/{(await upload(client))['id']}/content"
    behind = await client.get(path, headers={"range": "bytes=38-"})
    assert (behind.status_code, behind.headers["content-range"]) == (416, "bytes */38")
    assert behind.json()["error"]["type"] == "invalid_request_error"
    for headers in ({"range": "bytes=0-1,3-4"}, {"range": "rows=1-2"}, {"range": "bytes=5-1"}, {"range": "bytes=-"},
                    {"range": "bytes=0-1", "if-range": '"another"'}):  # fmt: skip
        answer = await client.get(path, headers=headers)
        assert (answer.status_code, answer.content) == (200, LINES)


def test_a_batchs_output_is_listed_by_its_own_time_and_not_by_its_batchs(files: FileStore) -> None:
    batch_id = f"batch_{stamp()}"
    before = [add(files) for _ in range(3)]
    output = output_file_id(batch_id, "output")
    with files.create(output, "out.jsonl", "batch_output") as file:
        file.write(LINES)
    after = add(files)
    assert [one.id for one in files.page(order="asc")[0]] == [*before, output, after]
    assert [one.id for one in files.page(order="asc", after=before[-1])[0]] == [output, after]
    assert [one.id for one in files.page(after=after, limit=1)[0]] == [output]
    files.delete(before[1])  # a cursor may be gone
    assert [one.id for one in files.page(order="asc", after=before[1])[0]] == [before[2], output, after]


async def test_a_deleted_file_is_gone(client: httpx.AsyncClient, files: FileStore) -> None:
    stored = await upload(client)
    deleted = (await client.delete(f"/files/{stored['id']}")).json()
    assert FileDeleted.model_validate(deleted, strict=True).deleted
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        missing = await client.request(method, f"/files/{stored['id']}{path}")
        assert missing.status_code == 404
        assert stored["id"] in missing.json()["error"]["message"]
    assert os.listdir(files.folder) == []


async def test_a_list_is_cut_in_pages_by_cursor_in_either_order_and_by_purpose(client: httpx.AsyncClient) -> None:
    ids = [(await upload(client, purpose="vision" if i == 2 else "batch"))["id"] for i in range(5)]
    for order, expected in (("desc", ids[::-1]), ("asc", ids)):
        seen: list[str] = []
        while True:
            query: dict[str, Any] = {"limit": 2, "order": order} | ({"after": seen[-1]} if seen else {})
            page = (await client.get("/files", params=query)).json()
            assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
            seen += [one["id"] for one in page["data"]]
            if not page["has_more"]:
                break
        assert seen == expected
    assert [f["id"] for f in (await client.get("/files", params={"purpose": "vision"})).json()["data"]] == [ids[2]]
    one = (await client.get("/files", params={"purpose": "batch", "limit": 4})).json()
    assert (len(one["data"]), one["has_more"]) == (4, False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "nonsense"}, "purpose"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "60"}, "expires_after.seconds"),
        ({"expires_after[seconds]": "7200"}, "expires_after.anchor"),
        ({"expires_after": '{"anchor": "created_at"}'}, "expires_after.seconds"),
    ],
)
async def test_a_wrong_field_of_an_upload_is_named(
    client: httpx.AsyncClient, fields: dict[str, str], param: str
) -> None:
    answer = await client.post("/files", data={"purpose": "batch", **fields}, files={"file": ("f", LINES)})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_errors_have_the_shape_of_openais(client: httpx.AsyncClient) -> None:
    for method, path, status in (
        ("POST", "/files", 400),  # no form
        ("GET", "/files?limit=0", 400),
        ("GET", "/files?order=up", 400),
        ("GET", "/files/..%2Fjob.json", 404),
        ("GET", "/files/nonsense", 404),
        ("PUT", "/files", 405),
    ):
        answer = await client.request(method, path)
        assert answer.status_code == status, path
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("whole", [True, False])
async def test_a_file_expires_when_its_upload_says(client: httpx.AsyncClient, clock: Clock, whole: bool) -> None:
    form = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    if whole:
        form = {"expires_after": '{"anchor": "created_at", "seconds": 3600}'}
    stored = await upload(client, LINES, **form)
    assert stored["expires_at"] == clock.now + 3600
    clock.now += 3599
    assert (await client.get(f"/files/{stored['id']}")).status_code == 200
    clock.now += 1
    assert (await client.get(f"/files/{stored['id']}/content")).status_code == 404
    assert (await client.get("/files")).json()["data"] == []


def test_input_of_batches_expires_by_itself_and_other_files_do_not(files: FileStore, clock: Clock) -> None:
    assert files.get(add(files)).expires_at == clock.now + 30 * 86_400
    assert files.get(add(files, purpose="user_data")).expires_at is None


def test_a_sweep_removes_what_has_expired_and_what_a_broken_upload_left(files: FileStore, clock: Clock) -> None:
    gone, stays = add(files, expires_after_s=3600), add(files, purpose="user_data")
    orphan = Path(files.folder) / new_file_id()
    orphan.write_bytes(b"half an upl")
    os.utime(orphan, (clock.now, clock.now))
    assert files.sweep() == 0
    clock.now += ORPHAN_S + 1
    assert files.sweep() == 2
    assert set(os.listdir(files.folder)) == {stays, f"{stays}.json"}
    with pytest.raises(NoSuchFile, match=gone):
        files.get(gone)


def test_an_upload_that_breaks_leaves_no_file(files: FileStore) -> None:
    class Broken(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            raise OSError("the client left")

    with pytest.raises(Exception, match="the client left"):
        files.add(Broken(), "f", "batch")  # type: ignore[arg-type]
    assert os.listdir(files.folder) == []


def test_a_large_file_is_kept_without_holding_it_in_memory(files: FileStore) -> None:
    class Endless(io.RawIOBase):
        left, largest = 64 << 20, 0

        def readable(self) -> bool:
            return True

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            given = min(size, self.left)
            self.left -= given
            self.largest = max(self.largest, given)
            return b"x" * given

    source = Endless()
    stored = files.add(source, "big", "user_data")  # type: ignore[arg-type]
    assert stored.bytes == 64 << 20
    assert source.largest <= 1 << 20
    assert max(map(len, files.content(stored.id))) <= 1 << 20


def test_files_lie_where_no_job_is_looked_for(files: FileStore, tmp_path: Path) -> None:
    from serve_app.driver.store.store import Store

    add(files)
    assert Store(str(tmp_path)).jobs() == []


def test_a_store_that_cannot_keep_files_is_refused() -> None:
    with pytest.raises(BadSettings, match="cannot keep"):
        FileStore("https://example.org/files")


def test_files_are_kept_in_an_object_store_in_the_same_way(s3: str) -> None:
    files = FileStore(s3.format("runs"))
    first, second = add(files), add(files, b"x" * (3 << 20), "vision")
    assert b"".join(files.content(second)) == b"x" * (3 << 20)
    page, more = files.page(limit=1)
    assert ([one.id for one in page], more) == ([second], True)
    files.delete(first)
    assert [one.id for one in files.page()[0]] == [second]
