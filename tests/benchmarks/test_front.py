"""The comparison of front ends: its table and its sides, and online requests beside a population on made-up devices."""

from __future__ import annotations

import json
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from benchmarks.front import sides
from benchmarks.front.__main__ import PEERS, in_names
from benchmarks.front.report import RATIOS, report
from benchmarks.front.sides import CHAT_PEERS, OURS, ROW_PEERS, ours_of, ports, write_config
from serve_app.serving.launch.config import ServeConfig

CHAT = {"req_req_per_s": 100.0, "stream_tok_per_s": 1000.0, "stream_ttft_p99_ms": 9.0, "stream_itl_p50_ms": 1.0}
ROWS = {"score_rows_per_s": 500.0, "generate_tok_per_s": 2000.0}
CPU = {"req_cpu_ms.ray::ServeReplica:replicas:Replica": 4.0, "req_cpu_ms.haproxy": 0.5, "req_cpu_ms.raylet": 0.1}


def saved(tmp_path: Path, **given: object) -> dict[str, object]:
    chats = [{OURS: {**CHAT, **CPU}, "vllm_serve": {key: 2 * value for key, value in CHAT.items()}}] * 3
    rows = [{OURS: ROWS, "offline": ROWS}] * 3
    path = tmp_path / "out.json"
    report(chats, rows, [OURS], dict(given), {}, path)
    found: dict[str, object] = json.loads(path.read_text())
    return found


def test_ratios_are_ours_over_the_peers_in_the_same_pass(tmp_path: Path) -> None:
    found = saved(tmp_path)
    assert found["req_ratio_vs_vllm_serve"] == found["stream_tok_ratio_vs_vllm_serve"] == 0.5
    assert found["driver_score_vs_offline"] == found["driver_generate_vs_offline"] == 1.0


def test_what_was_not_measured_is_null_with_a_reason(tmp_path: Path) -> None:
    found = saved(tmp_path)
    missing = found["missing"]
    assert isinstance(missing, dict)
    nulls = {key for key, value in found.items() if value is None}
    assert nulls == set(missing)
    assert {ratio.name for ratio in RATIOS if ratio.peer in ("ray_serve_llm", "run_batch")} < nulls
    assert all(missing.values())


def test_the_load_generators_own_limit_is_told_over_the_fastest_side(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    limits = {"client_req_per_s": 1000.0, "client_tok_per_s": 3000.0}
    report([{OURS: CHAT, "vllm_serve": {**CHAT, "req_req_per_s": 500.0}}], [], [OURS], {}, limits, path)
    assert json.loads(path.read_text())["client_headroom"] == 2.0


def test_processor_time_is_told_for_replica_and_proxy(tmp_path: Path) -> None:
    found = saved(tmp_path)
    assert (found["replica_cpu_ms_per_request"], found["proxy_cpu_ms_per_request"]) == (4.0, 0.5)


def test_a_simulated_share_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"population_share_beside_online": 0.7, "online_p99_ttft_with_population_ratio": 1.1, "simulated": True}
    assert saved(tmp_path, **figures)["population_share_beside_online"] == 0.7
    assert "population_share_beside_online (SIMULATED)" in capsys.readouterr().out


def test_each_ratio_has_a_peer_that_can_be_chosen() -> None:
    assert {ratio.peer for ratio in RATIOS} == {*CHAT_PEERS, *ROW_PEERS} < set(PEERS)
    with pytest.raises(ArgumentTypeError, match="there is no vllm; there are vllm_serve"):
        in_names(PEERS)("vllm")


def test_servers_that_are_up_together_share_no_port() -> None:
    spans = []
    for number in range(len(ours_of(list(sides.INGRESSES)))):
        found = {name: int(port) for name, port in ports(number).items()}
        for kind in ("HTTP", "GRPC"):
            first, last = (found.pop(f"RAY_SERVE_DIRECT_INGRESS_{end}_{kind}_PORT") for end in ("MIN", "MAX"))
            spans.append(set(range(first, last + 1)))
        spans.append(set(found.values()))
    assert len(set().union(*spans)) == sum(map(len, spans))


def test_our_side_is_config_yaml_with_one_replica_of_the_tiny_engine(tmp_path: Path) -> None:
    config = ServeConfig.load(write_config(tmp_path / "ours", tmp_path, port=8999))
    assert config.base_url == "http://127.0.0.1:8999"
    assert config.worked.replicas == 1


@pytest.mark.engine
@pytest.mark.parametrize("name", ["CPU, 2 cores", "L4", "H100"])
def test_online_requests_hardly_wait_for_a_population_that_keeps_most_of_what_they_leave(name: str) -> None:
    from benchmarks.front.sharing import DEVICES, compare

    device = next(one for one in DEVICES if one.name == name)
    figures = compare(device, requests=200)
    assert figures["p99_ttft_ratio"] <= 1.2
    assert figures["population_share"] >= 0.6
