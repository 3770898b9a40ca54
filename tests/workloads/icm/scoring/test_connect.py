from typing import Any

import pytest

from serve_app.client import populations, replicas
from serve_app.errors import BadSettings
from serve_app.spec import JobStatus, Provider
from serve_app.workloads.icm.scoring.connect import connect
from tests.fakes import FakePool
from tests.workloads.icm.scoring.test_scorers import PROMPTS, FakeServer


class Asleep(FakeServer):
    """A simulated server without replicas, until somebody asks."""

    def replicas(self) -> list[Any]:
        return []

    def wait(self, job_id: str) -> JobStatus:
        return super().wait(job_id).model_copy(update={"simulated": True})


def test_a_server_says_that_it_is_simulated_once_it_has_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Asleep()
    monkeypatch.setattr(populations, "PopulationClient", lambda base_url: server)
    with connect("http://fake") as served:
        assert (served.name, served.simulated()) == ("", False)
        served.score(PROMPTS)
        assert served.simulated()
    assert server.jobs[0].metadata["group"].startswith("icm-")
    with connect("http://fake", model="m") as served:
        served.score(PROMPTS)
        assert (served.name, server.jobs[-1].model) == ("m", "m")


def test_a_provider_has_its_address_in_its_name_and_only_what_was_said_in_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = FakeServer()
    monkeypatch.setattr(populations, "PopulationClient", lambda base_url: server)
    provider = Provider(base_url="https://x/v1", model="m", concurrency=3)
    with connect("http://fake", provider=provider) as served:
        assert served.name == "m at https://x/v1"
        served.score(PROMPTS)
    assert server.jobs[0].provider == provider


def test_replicas_in_the_cluster_tell_their_model_and_no_provider_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    client = replicas.ReplicaClient(FakePool(["a"]))
    monkeypatch.setattr(replicas.ReplicaClient, "connect", lambda: client)
    with connect("", cluster=True) as served:
        assert served.name
        assert served.simulated()  # as FakePool's engines say
    with (
        pytest.raises(BadSettings, match="--cluster calls our own replicas"),
        connect("", cluster=True, provider=Provider(base_url="https://x/v1", model="m")),
    ):
        pass
