"""The pure parts of the ingress benchmark, its load generator on a server of its own, and what keeps servers apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ingress import OURS, PEERS, PORTS, Figure, chosen, figure_line, report
from benchmarks.load import (
    SYSTEM,
    Answer,
    Exchange,
    Result,
    answer,
    events,
    percentile,
    prompts,
    stream_figures,
)
from benchmarks.peers.fleet import Fleet, Side
from serve_app.dispatch.render import TokenRenderer
from serve_app.errors import ServeAppError, ServerUnavailable
from serve_app.models.default import prepare
from serve_app.schema import Row, unpack_tokens
from tests.benchmarks.kit import chunk, ending


def exchange(*reads: tuple[float, bytes], status: int = 200) -> Exchange:
    return Exchange(sent=10.0, status=status, reads=list(reads))


FIGURE_KEYS = {
    *("req_per_s", "tok_per_s", "itl_p50_ms", "itl_p99_ms", "ttft_p99_ms"),
    *("low_ttft_p50_ms", "tokens_per_chunk", "client_cores"),
}


# --- prompts ---


def test_all_prompts_are_of_one_length_in_tokens() -> None:
    renderer = TokenRenderer(str(prepare()))
    system = {"role": "system", "content": SYSTEM}
    texts = [*prompts(50, "one"), *prompts(50, "other")]
    rows = [Row(str(i), (system, {"role": "user", "content": text})) for i, text in enumerate(texts)]
    tokens = [unpack_tokens(one) for one in renderer.prompts(rows) if isinstance(one, bytes)]
    assert len(tokens) == 100
    assert len({len(one) for one in tokens}) == 1
    shared = next(i for i, (one, other) in enumerate(zip(tokens[0], tokens[1], strict=True)) if one != other)
    assert 96 <= shared < 128  # three blocks of 32, as SYSTEM says


def test_another_seed_gives_other_prompts_from_the_first_block_on() -> None:
    first = {tuple(text.split()[:17]) for text in prompts(500, "one")}
    assert len(first) == 500
    assert first.isdisjoint(tuple(text.split()[:17]) for text in prompts(500, "other"))
    assert prompts(5, "one") == prompts(5, "one")


# --- reading a stream ---


@given(st.data())
def test_events_are_the_same_wherever_reads_are_cut(data: st.DataObject) -> None:
    whole = chunk("a") + b": ping\n\n" + chunk("b\n\n") + b'data: {"x":1}\r\n\r\n' + ending()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)))))
    pieces = [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    found = [event for _, event in events((0.0, piece) for piece in pieces)]
    assert found == [chunk("a")[6:-2], chunk("b\n\n")[6:-2], b'{"x":1}', ending()[6:].split(b"\n\n")[0], b"[DONE]"]


def test_an_event_is_as_late_as_its_last_byte() -> None:
    text = chunk("a")
    assert [at for at, _ in events([(1.0, text[:9]), (2.0, text[9:] + text), (3.0, text)])] == [2.0, 2.0, 3.0]


def test_only_chunks_with_content_count() -> None:
    read = answer(
        exchange((11.0, chunk("")), (12.0, chunk("a")), (13.0, chunk("b")), (14.0, ending())), 8.0, stream=True
    )
    assert read == Answer(2.0, 6.0, [4.0, 5.0], 40, 32, 2)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (exchange((11.0, b"no replica"), status=503), "503: no replica"),
        (exchange((11.0, chunk("a")), (12.0, b'data: {"error": {"message": "engine died"}}\n\n')), "engine died"),
        (exchange((11.0, chunk("")), (12.0, ending())), "no chunk had content"),
        (exchange((11.0, chunk("a"))), "prompt_tokens"),
        (exchange(), "no chunk had content"),
    ],
)
def test_a_refused_failed_empty_or_cut_answer_is_an_error(broken: Exchange, said: str) -> None:
    assert said in answer(broken, 8.0, stream=True).error


# --- figures ---


def test_figures_are_of_good_answers_only() -> None:
    answers = [
        Answer(0.0, 1.0, [0.1, 0.2, 0.5], 40, 20, 4),
        Answer(0.5, 1.5, [0.8, 0.9, 1.0], 40, 20, 4),
        Answer(0.0, 2.0, error="503"),
    ]
    figures = stream_figures(Result(answers, wall_s=2.0, cpu_s=0.5))
    assert figures["tok_per_s"] == 4.0
    assert figures["ttft_p50_ms"] == pytest.approx(200)
    assert figures["itl_p50_ms"] == pytest.approx(100)
    assert figures["itl_p99_ms"] == pytest.approx(294)
    assert figures["tokens_per_chunk"] == pytest.approx(8 / 6)
    assert figures["cached_share"] == 0.5
    assert figures["client_cores"] == 0.25


def test_without_a_good_answer_there_is_no_figure() -> None:
    with pytest.raises(ServeAppError, match="503: busy"):
        stream_figures(Result([Answer(0.0, 1.0, error="503: busy")], 1.0, 0.1))
    with pytest.raises(ServeAppError, match="no percentile"):
        percentile([], 50)


def test_a_ratio_is_ours_over_the_peers_and_milliseconds_are_subtracted() -> None:
    one = {"ours": {"rate": 30.0}, "peer": {"rate": 40.0}}
    assert Figure("rate_ratio", "ours", "peer", "rate").compare(one) == 0.75
    assert Figure("added_ms", "ours", "peer", "rate").compare(one) == -10.0


def test_the_median_of_all_passes_is_told_with_each_of_them() -> None:
    result: dict[str, object] = {}
    assert figure_line(result, "ratio", [0.9, 0.5, 0.8], "≥ 1") == ["ratio", "0.80", "0.50–0.90", "≥ 1"]
    assert result == {"ratio": 0.8, "ratio_passes": [0.9, 0.5, 0.8]}


def test_a_pass_without_a_side_is_not_compared_and_the_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def side(rate: float) -> dict[str, float]:
        return dict.fromkeys(FIGURE_KEYS, rate)

    passes = [{OURS: side(30.0)}, {OURS: side(30.0), "vllm_serve": side(40.0)}, {"vllm_serve": side(40.0)}]
    online = [{"with_ttft_p99_ms": 300.0, "without_ttft_p99_ms": 200.0}]
    report([passes, []], online, {"gflops": 1.0, "dtype": "float32"}, tmp_path / "out.json")
    found = msgspec.json.decode((tmp_path / "out.json").read_bytes())
    assert found["req_ratio_vs_vllm_serve_passes"] == [0.75]
    assert found["ttft_p50_added_ms"] == -10.0
    assert found["online_p99_ttft_with_population_ratio"] == 1.5
    assert "haproxy_vs_proxy" not in found
    assert msgspec.json.decode(capsys.readouterr().out.splitlines()[-1]) == found


# --- which sides ---


def test_a_peer_that_is_none_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="there is no sglang"):
        chosen("proxy,sglang", quick=True)


def test_ours_is_always_measured_and_a_quick_run_leaves_the_slowest_peer_out() -> None:
    assert chosen("vllm_serve", quick=True) == {OURS, "vllm_serve"}
    assert chosen("", quick=False) == {OURS, *PEERS}
    assert chosen("", quick=False) - chosen("", quick=True) == {"ray_serve_llm_direct"}
    assert len(set(PORTS.values())) == len(PORTS) == len(PEERS)


class FakeSide:
    base_url, model = "http://nowhere", "m"

    def __init__(self, error: str = "") -> None:
        self.error = error
        self.done: list[str] = []

    def start(self) -> None:
        self.done.append("start")
        if self.error:
            raise ServerUnavailable(self.error)

    def thaw(self) -> None:
        self.done.append("thaw")

    def freeze(self) -> None:
        self.done.append("freeze")

    def stop(self) -> None:
        self.done.append("stop")


def test_sides_wait_frozen_and_are_stopped_when_a_round_has_no_use_for_them() -> None:
    sides = {name: FakeSide() for name in (OURS, "proxy", "vllm_serve")}
    with Fleet({name: _giving(side) for name, side in sides.items()}, [OURS]) as fleet:
        assert list(fleet.having([OURS, "proxy"])) == [OURS, "proxy"]
        assert fleet.having([OURS, "vllm_serve"]) == {OURS: sides[OURS], "vllm_serve": sides["vllm_serve"]}
        assert sides["proxy"].done == ["start", "freeze", "stop"]
        assert sides[OURS].done == ["start", "freeze"]
    assert all(side.done == ["start", "freeze", "stop"] for side in sides.values())


def test_a_peer_that_does_not_start_is_left_out_and_stopped_but_ours_must_start() -> None:
    ours, peer = FakeSide(), FakeSide("no environment")
    with Fleet({OURS: _giving(ours), "proxy": _giving(peer)}, [OURS]) as fleet:
        assert list(fleet.having([OURS, "proxy"])) == [OURS]
        assert peer.done == ["start", "stop"]
    broken = FakeSide("no memory")
    with pytest.raises(ServerUnavailable, match="no memory"), Fleet({OURS: _giving(broken)}, [OURS]) as fleet:
        fleet.having([OURS])
    assert broken.done == ["start", "stop"]


def _giving(side: Side) -> Callable[[], Side]:
    return lambda: side
