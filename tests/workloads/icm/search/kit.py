"""A search on planted labels."""

from serve_app.workloads.icm.examples.dataset import Dataset
from serve_app.workloads.icm.schedule import SearchSettings
from serve_app.workloads.icm.scoring.protocol import Scorer
from serve_app.workloads.icm.search.search import Search
from serve_app.workloads.icm.search.state import State, Step


def run(data: Dataset, asked: SearchSettings, score: Scorer) -> tuple[Search, list[tuple[State, Step]]]:
    search = Search(data, asked, score)
    return search, [(search.state, step) for step in search]
