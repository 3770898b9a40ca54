"""Connects a search to a model: replicas by handle, or a server's populations or external provider."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from serve_app.errors import BadSettings
from serve_app.spec import Provider
from serve_app.workloads.icm.scoring.protocol import Scorer


class ServedModel(NamedTuple):
    """A scorer, its model's name ("": unknown), and whether a simulated engine answered."""

    score: Scorer
    name: str = ""
    simulated: Callable[[], bool] = lambda: False


@contextmanager
def connect(
    base_url: str, *, model: str | None = None, provider: Provider | None = None, cluster: bool = False
) -> Iterator[ServedModel]:
    """The server's model, or with `cluster` the Ray cluster's of this process. Raises BadSettings for a provider in the
    cluster, ServerUnavailable, EngineFailed without replicas.
    """
    from serve_app.client.populations import PopulationClient
    from serve_app.client.replicas import ReplicaClient
    from serve_app.workloads.icm.scoring.scorers import PopulationScorer, ReplicaScorer

    if cluster:
        if provider is not None:
            raise BadSettings("--cluster calls our own replicas: leave out --provider")
        with ReplicaScorer(ReplicaClient.connect()) as scorer:
            engine = scorer.engine()
            yield ServedModel(scorer, engine.model, lambda: engine.simulated)
        return
    client = PopulationClient(base_url)
    if provider is not None:
        asked = provider.model_dump(exclude_defaults=True)
        yield ServedModel(PopulationScorer(client, provider=asked), f"{provider.model} at {provider.base_url}")
        return
    name = model or next((replica.engine.model for replica in client.replicas()), "")
    asking = PopulationScorer(client, **({"model": model} if model else {}))
    yield ServedModel(asking, name, lambda: asking.simulated)
