import pytest

from serve_app.client.populations import PopulationClient


@pytest.fixture(autouse=True)
def answering(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server answers wherever a command of this process looks for one."""
    monkeypatch.setattr(PopulationClient, "ping", lambda client: None)
