"""Web servers that a source may be read from."""

import socket
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, RedirectResponse, Response

from serve_app.addresses import PUBLIC, Reach
from serve_app.storage import web
from serve_app.storage.filesystem import resolve
from tests.conftest import served


def read(url: str, reach: Reach) -> bytes:
    filesystem, path = resolve(url, reach)
    with filesystem.open_input_stream(path) as file:
        return bytes(file.read())


class Server:
    """`/x.csv`, and `/away?to=…`, which redirects."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.app = FastAPI()

        @self.app.api_route("/x.csv", methods=["GET", "HEAD"])
        async def file() -> Response:
            self.asked.append("/x.csv")
            return PlainTextResponse("secret")

        @self.app.api_route("/away", methods=["GET", "HEAD"])
        async def away(to: str) -> Response:
            return RedirectResponse(to)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def url(server: Server) -> Iterator[str]:
    with served(server.app, lifespan="off") as url:
        yield url


def port(url: str) -> int:
    return int(url.rpartition(":")[2])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "2130706433"])
def test_a_web_server_of_this_machine_is_read_only_where_the_operator_named_it(
    server: Server, url: str, host: str
) -> None:
    with pytest.raises(OSError, match="x.csv"):
        read(f"http://{host}:{port(url)}/x.csv", PUBLIC)
    assert server.asked == []


def test_a_named_one_is_read_by_address_or_name(url: str) -> None:
    assert read(f"{url}/x.csv", Reach.of([url], "source_urls")) == b"secret"
    by_name = f"http://localhost:{port(url)}"
    assert read(f"{by_name}/x.csv", Reach.of([by_name], "source_urls")) == b"secret"


def test_a_redirect_leads_to_no_other_place_than_the_url_could(server: Server, url: str) -> None:
    other = Server()
    with served(other.app, lifespan="off") as inside:
        reach = Reach.of([url], "source_urls")
        with pytest.raises(OSError, match="away"):
            read(f"{url}/away?to={inside}/x.csv", reach)
        assert other.asked == []
        both = Reach.of([url, inside], "source_urls")
        assert read(f"{url}/away?to={inside}/x.csv", both) == b"secret"


def test_what_counts_is_the_address_that_a_name_leads_to_when_it_is_connected_to(
    server: Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def rebound(host: str, *arguments: object, **named: object) -> object:
        return look_up("127.0.0.1" if host == "public.example" else host, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    with pytest.raises(OSError, match="x.csv"):
        read(f"http://public.example:{port(url)}/x.csv", PUBLIC)
    assert server.asked == []
    named = Reach.of([f"http://public.example:{port(url)}"], "source_urls")
    assert read(f"http://public.example:{port(url)}/x.csv", named) == b"secret"


def test_a_metadata_service_is_no_source_even_if_named() -> None:
    guard = web.Guard(Reach.of(["http://169.254.169.254/"], "source_urls"))
    with pytest.raises(OSError, match="metadata"):
        guard.open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("169.254.169.254", 80)))
