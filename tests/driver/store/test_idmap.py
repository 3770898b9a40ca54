import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.driver.store.idmap import IdMap

# Few distinct words, so that keys repeat, share either half, and hold zeros and the largest number.
WORDS = st.sampled_from([b"\0" * 8, b"\xff" * 8, b"a" + b"\0" * 7, b"\0" * 7 + b"a", b"abcdefgh"])
KEYS = st.one_of(st.builds(lambda high, low: high + low, WORDS, WORDS), st.binary(min_size=16, max_size=16))
VALUES = st.integers(0, 2**64 - 1)


@settings(deadline=None)
@given(st.lists(st.lists(st.tuples(KEYS, VALUES), max_size=20), max_size=12), st.lists(KEYS, max_size=20))
def test_it_answers_as_a_dict_does(batches: list[list[tuple[bytes, int]]], others: list[bytes]) -> None:
    model: dict[bytes, int] = {}
    ids = IdMap()
    for batch in batches:
        model.update(batch)
        ids.add([key for key, _ in batch], np.array([value for _, value in batch], np.uint64))
        asked = [*model, *others]
        assert ids.lookup(asked) == [model.get(key) for key in asked]
    assert all(ids.get(key) == value for key, value in model.items())


MILLION = """
import numpy as np, psutil
from serve_app.driver.store.idmap import IdMap
rng, ids, size = np.random.default_rng(0), IdMap(), psutil.Process().memory_info
before = size().rss
for start in range(0, 1_000_000, 10_000):
    packed = rng.bytes(160_000)
    keys = [packed[i : i + 16] for i in range(0, len(packed), 16)]
    ids.add(keys, np.arange(start, start + 10_000, dtype=np.uint64))
print(ids.get(keys[-1]), (size().rss - before) / 1e6)
"""


def test_a_million_rows_take_less_than_forty_megabytes_of_a_process() -> None:
    # In a process of its own: one that has freed memory before would not grow.
    done = subprocess.run([sys.executable, "-c", MILLION], stdout=subprocess.PIPE, text=True, check=True)
    last, megabytes = done.stdout.split()
    assert int(last) == 999_999
    assert 24 <= float(megabytes) <= 40


def test_an_empty_map_has_no_key() -> None:
    assert IdMap().lookup([b"0" * 16, b"1" * 16]) == [None, None]
    assert IdMap().lookup([]) == []


def test_keys_and_values_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(ValueError, match="keys have 16 bytes"):
        IdMap().add([b"short", b"x" * 27], np.zeros(2, np.uint64))
    with pytest.raises(ValueError, match="1 keys and 2 values"):
        IdMap().add([b"0" * 16], np.zeros(2, np.uint64))
