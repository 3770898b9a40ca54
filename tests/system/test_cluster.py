"""The whole stack on real vLLM: two replicas at TP=2 behind Serve, the driver beside them.

The tests share one cluster and run in the order of this file; those that kill something come last.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml
from openai import BadRequestError, OpenAI

from serve_app.client.check import run_checks
from serve_app.client.populations import PopulationClient
from serve_app.engine.processes.shared_memory import unlink_mapped
from serve_app.models.default import prepare
from serve_app.schema import ReplicaInfo
from serve_app.serving.launch.config import set_store
from serve_app.serving.launch.local import RUN_MARKER, local_serve, marked_processes
from serve_app.spec import JobSpec
from serve_app.workloads.ctr.asking.frames import YES_NO
from serve_app.workloads.ctr.asking.predict import log_odds, predict
from serve_app.workloads.ctr.asking.prompts import NO, WORKLOAD, YES, render_rows
from serve_app.workloads.ctr.people.profiles import generate_profiles
from serve_app.workloads.ctr.study import Study
from tests.conftest import Cluster, unused_port
from tests.system.kit import compare_prompt_tokens, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
MODEL = "smollm2-135m-instruct"
# How far log-probabilities may be apart (worst, mean), by the type that the engine computes in here. In bf16 logits
# have steps of 0.125 between 16 and 32, where this model's largest are: two steps at worst, half a one in the mean.
DIFFERENCES = {"bfloat16": (0.25, 0.0625), "float32": (0.002, 0.0005)}


@pytest.fixture(scope="module")
def openai(cluster: Cluster) -> Any:
    return OpenAI(base_url=f"{cluster.base_url}/v1", api_key="none", max_retries=0, timeout=120)


def replicas(cluster: Cluster) -> list[ReplicaInfo]:
    return PopulationClient(cluster.base_url).replicas()


@pytest.fixture(scope="module")
def differences_allowed(cluster: Cluster) -> tuple[float, float]:
    return DIFFERENCES[replicas(cluster)[0].engine.dtype]


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# --- what runs ---


def test_each_replica_has_two_worker_processes_and_cores_for_them(cluster: Cluster) -> None:
    running = replicas(cluster)
    assert len(running) == 2
    for replica in running:
        workers = replica.engine.worker_pids
        assert len(workers) == 2
        # EngineCore and the fork server are between.
        assert {psutil.Process(pid).parents()[2].pid for pid in workers} == {replica.pid}
        assert replica.engine.tensor_parallel_size == 2
        assert len(replica.engine.cpu_binding.split("|")) == 2
        assert not replica.engine.simulated
    assert len({pid for replica in running for pid in replica.engine.worker_pids}) == 4


def test_serve_app_check_finds_nothing_wrong(cluster: Cluster) -> None:
    results = list(run_checks(cluster.base_url, replicas=2))
    assert [name for name, problem, _ in results if problem] == []
    assert len(results) == 8


def test_serve_app_check_finds_a_server_that_is_not_there() -> None:
    ((name, problem, _),) = run_checks("http://127.0.0.1:9")
    assert name == "reachable"
    assert "does not answer" in str(problem)


# --- a stock OpenAI client ---


def test_chat_gives_text_and_usage(openai: Any) -> None:
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=12,
        temperature=0,
    )
    assert "Paris" in answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


def test_streamed_chat_is_the_same_text_in_pieces_and_ends_with_usage(openai: Any) -> None:
    ask = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = openai.chat.completions.create(**ask).choices[0].message.content
    pieces = list(openai.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    assert "".join(p.choices[0].delta.content or "" for p in pieces if p.choices) == whole
    assert len(pieces) > 3
    assert pieces[-1].usage.completion_tokens == 12


def test_a_list_of_prompts_is_answered_in_order_with_logprobs(openai: Any) -> None:
    prompts = ["One, two,", "The capital of Italy is", "Roses are"]
    answer = openai.completions.create(model=MODEL, prompt=prompts, max_tokens=4, temperature=0, logprobs=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert "Rome" in answer.choices[1].text
    assert all(len(choice.logprobs.top_logprobs) == 4 for choice in answer.choices)


def test_a_hundred_prompts_in_one_call_are_answered_by_both_replicas_as_one_by_one(
    openai: Any, differences_allowed: tuple[float, float]
) -> None:
    # Continuations that the model is sure of, so that rounding cannot make another token the likeliest.
    prompts = [", ".join(str(i + k) for k in range(5)) + "," for i in range(100, 200)]
    ask = {"model": MODEL, "max_tokens": 4, "temperature": 0, "logprobs": 2, "seed": 7}

    raw = openai.completions.with_raw_response.create(prompt=prompts, **ask)
    answer = raw.parse()
    assert raw.headers["x-serve-app-replicas"] == "2"
    assert [choice.index for choice in answer.choices] == list(range(100))

    alone = [openai.completions.create(prompt=prompt, **ask) for prompt in prompts]
    singles = [single.choices[0] for single in alone]
    assert [choice.logprobs.tokens for choice in answer.choices] == [single.logprobs.tokens for single in singles]
    assert [choice.text for choice in answer.choices] == [single.text for single in singles]
    differences = [
        abs(one - other)
        for choice, single in zip(answer.choices, singles, strict=True)
        for one, other in zip(choice.logprobs.token_logprobs, single.logprobs.token_logprobs, strict=True)
    ]
    print(f"log-probabilities of {len(differences)} tokens: largest difference {max(differences):.4f}")
    assert max(differences) < differences_allowed[0]
    assert answer.usage.prompt_tokens == sum(single.usage.prompt_tokens for single in alone)
    assert answer.usage.completion_tokens == sum(single.usage.completion_tokens for single in alone)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_structured_output_follows_a_schema_and_a_choice(openai: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}},
        "required": ["age"],
        "additionalProperties": False,
    }
    answer = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Bob is 31 years old. Answer in JSON."}],
        max_tokens=40,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "age", "schema": schema}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content)["age"], int)
    choice = openai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Is the sky blue?"}],
        extra_body={"structured_outputs": {"choice": ["certainly", "never"]}},
    )
    assert choice.choices[0].message.content in ("certainly", "never")


def test_models_and_tokenize_answer(cluster: Cluster, openai: Any) -> None:
    assert [model.id for model in openai.models.list().data] == [MODEL]
    tokens = httpx.post(
        f"{cluster.base_url}/tokenize", json={"model": MODEL, "prompt": "Hello there"}, timeout=30
    ).json()
    assert tokens["count"] == len(tokens["tokens"]) > 0


def test_a_bad_request_is_refused_in_openais_shape(openai: Any) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.completions.create(model=MODEL, prompt="x " * 6000, max_tokens=1)
    assert "maximum context length" in str(refused.value)


# --- the driver ---


def test_a_populations_prompts_are_the_tokens_of_online_requests(cluster: Cluster) -> None:
    compare_prompt_tokens(cluster.base_url, MODEL, {})


def ctr_rows(count: int) -> Any:
    return render_rows(generate_profiles(count), "New smartphone launch", "facebook")


def test_a_population_is_scored_by_both_replicas(cluster: Cluster) -> None:
    client = PopulationClient(cluster.base_url)
    job_id = client.submit(JobSpec.of(ctr_rows(320), workload=WORKLOAD, labels=[YES, NO]))
    status = client.wait(job_id)
    assert (status.state, status.ok, status.failed) == ("completed", 320, 0)
    assert (status.replicas_available, status.replicas_chosen) == (2, 2)
    assert len(status.rows_by_replica) == 2
    assert min(status.rows_by_replica.values()) >= 64
    outcomes = list(client.outcomes(job_id))
    assert len({outcome.custom_id for outcome in outcomes}) == len(outcomes) == 320
    assert all(0 < (predict(outcome).p_click or 0) < 1 for outcome in outcomes)
    assert all(outcome.engine_version == "vllm 0.32.0" and not outcome.simulated for outcome in outcomes)
    assert sum(o.cached_tokens for o in outcomes) / sum(o.prompt_tokens for o in outcomes) > 0.5


def test_label_logprobs_agree_with_transformers_on_the_unpadded_model(
    cluster: Cluster, differences_allowed: tuple[float, float]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rows = ctr_rows(24)
    client = PopulationClient(cluster.base_url)
    job_id = client.submit(JobSpec.of(rows, workload=WORKLOAD, labels=[YES, NO]))
    assert client.wait(job_id).state == "completed"
    scored = {outcome.custom_id: outcome.value for outcome in client.outcomes(job_id)}

    folder = prepare(padded=False)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    # The weights are bf16 numbers; computing in float32 makes the reference exact rather than differently rounded.
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert model.config.num_attention_heads == 9
    labels = {label: tokenizer(label, add_special_tokens=False)["input_ids"][0] for label in (YES, NO)}
    differences = []
    for row in rows:
        text = tokenizer.apply_chat_template(list(row.messages), tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            logprobs = model(ids).logits[0, -1].float().log_softmax(-1)
        value = scored[row.custom_id]
        assert value is not None
        differences += [abs(float(logprobs[i]) - value["logprobs"][label]) for label, i in labels.items()]
    worst, mean = max(differences), sum(differences) / len(differences)
    print(f"label log-probabilities over {len(rows)} prompts: largest difference {worst:.4f}, mean {mean:.4f}")
    assert worst < differences_allowed[0]
    assert mean < differences_allowed[1]


def test_a_study_gives_the_same_probabilities_in_one_job_cut_by_a_cancel_and_in_parts(
    cluster: Cluster, differences_allowed: tuple[float, float]
) -> None:
    study, client = Study(ad="New smartphone launch", size=256), PopulationClient(cluster.base_url)
    whole = study.submit(client)
    wait_for("it is under way", lambda: client.status(whole).ok >= 32, 60)
    client.cancel(whole)
    assert client.wait(whole).state == "cancelled"
    client.resume(whole)
    status = client.wait(whole)
    assert (status.state, status.ok, status.replicas_chosen) == ("completed", 256, 2)

    # Other neighbours, another order, one replica.
    rows = list(study.rows())
    parts = [client.submit(JobSpec.of(rows[i::4][::-1], **study.question.job())) for i in range(4)]
    assert {(status.ok, status.replicas_chosen) for status in map(client.wait, parts)} == {(64, 1)}
    found = [
        {
            outcome.custom_id: log_odds(outcome.value or {}, YES_NO)
            for job_id in jobs
            for outcome in client.outcomes(job_id)
        }
        for jobs in ([whole], parts)
    ]
    assert found[0].keys() == found[1].keys()
    differences = [abs(found[0][one] - found[1][one]) for one in found[0]]
    worst, mean = max(differences), sum(differences) / len(differences)
    print(f"log-odds of {len(rows)} people asked twice: largest difference {worst:.4f}, mean {mean:.4f}")
    # Of two label log-probabilities each.
    assert worst < 2 * differences_allowed[0]
    assert mean < 2 * differences_allowed[1]


def test_a_generation_job_answers_in_text_and_a_row_too_long_is_invalid_alone(cluster: Cluster) -> None:
    from serve_app.schema import Row

    rows = [Row(f"q{i}", ({"role": "user", "content": f"What is {i} plus {i}?"},)) for i in range(5)]
    rows.append(Row("long", ({"role": "user", "content": "word " * 6000},)))
    client = PopulationClient(cluster.base_url)
    job_id = client.submit(JobSpec.of(rows, workload="sums/v1", max_tokens=8))
    status = client.wait(job_id)
    assert (status.state, status.ok, status.invalid) == ("completed_with_failures", 5, 1)
    by_id = {outcome.custom_id: outcome for outcome in client.outcomes(job_id)}
    assert by_id["long"].value is None
    assert "maximum" in (by_id["long"].error or "")
    assert all((by_id[f"q{i}"].value or {})["text"] for i in range(5))


# --- faults: from here on processes are killed ---


def test_killing_a_replica_mid_job_loses_and_duplicates_nothing_and_leaves_no_orphan(cluster: Cluster) -> None:
    client = PopulationClient(cluster.base_url)
    victim = replicas(cluster)[0]
    job_id = client.submit(JobSpec.of(ctr_rows(600), workload=WORKLOAD, labels=[YES, NO]))
    wait_for(
        "the victim does some work",
        lambda: client.status(job_id).rows_by_replica.get(victim.replica_id, 0) > 0,
        120,
    )
    engine = [p.pid for p in psutil.Process(victim.pid).children(recursive=True)]
    assert len(engine) >= 3
    assert unlink_mapped(map(psutil.Process, engine)) == []  # nothing that a SIGKILL would leave in /dev/shm
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_for("the engine of a killed replica is gone", lambda: not any(map(alive, engine)), 10)
    print(f"engine processes gone {time.monotonic() - killed:.1f} s after SIGKILL of the replica")
    status = client.wait(job_id)
    assert (status.state, status.ok, status.failed) == ("completed", 600, 0)
    outcomes = list(client.outcomes(job_id))
    assert sorted(outcome.custom_id for outcome in outcomes) == sorted(row.custom_id for row in ctr_rows(600))
    assert any(outcome.attempts > 1 for outcome in outcomes)
    wait_for("the replica is replaced", lambda: len(replicas(cluster)) == 2, 300)


def test_a_stopped_worker_is_found_and_its_replica_replaced_and_the_rows_lose_no_attempt(cluster: Cluster) -> None:
    client = PopulationClient(cluster.base_url)
    victim = replicas(cluster)[0]
    log_before = len(cluster.log.read_text(errors="replace"))
    job_id = client.submit(JobSpec.of(ctr_rows(500), workload=WORKLOAD, labels=[YES, NO]))
    wait_for(
        "the victim does some work",
        lambda: client.status(job_id).rows_by_replica.get(victim.replica_id, 0) > 0,
        120,
    )
    os.kill(victim.engine.worker_pids[1], signal.SIGSTOP)
    stopped = time.monotonic()
    wait_for("the hang is found", lambda: "it hangs" in cluster.log.read_text(errors="replace")[log_before:], 30)
    print(f"a stopped worker was found after {time.monotonic() - stopped:.1f} s")
    wait_for("its replica is gone", lambda: not alive(victim.pid), 90)
    status = client.wait(job_id)
    assert (status.state, status.ok, status.failed) == ("completed", 500, 0)
    wait_for("the replica is replaced", lambda: len(replicas(cluster)) == 2, 300)


def test_killing_an_engine_core_takes_its_workers_along_and_the_replica_is_replaced(cluster: Cluster) -> None:
    victim = replicas(cluster)[0]
    workers = victim.engine.worker_pids
    core = psutil.Process(workers[0]).ppid()
    os.kill(core, signal.SIGKILL)
    wait_for("the workers of a killed EngineCore are gone", lambda: not any(map(alive, [core, *workers])), 10)
    wait_for(
        "the replica is replaced",
        lambda: len(new := replicas(cluster)) == 2 and victim.replica_id not in {r.replica_id for r in new},
        300,
    )


def test_ctrl_c_on_serve_run_leaves_no_process_and_frees_the_port(cluster: Cluster) -> None:
    marker = psutil.Process(replicas(cluster)[0].pid).environ()[RUN_MARKER]
    everything = marked_processes(marker)
    (serve_run,) = [
        p for p in everything if p.cmdline()[1:3] and p.cmdline()[1].endswith("/serve") and "run" in p.cmdline()
    ]
    assert len(everything) > 10
    serve_run.send_signal(signal.SIGINT)
    serve_run.wait(60)
    wait_for("no process is left", lambda: not marked_processes(marker), 10)
    port = int(cluster.base_url.rsplit(":", 1)[1])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_ray_stop_force_leaves_no_engine_and_no_haproxy(cluster: Cluster, tmp_path: Path) -> None:
    """One real replica behind HAProxy; `ray stop --force` SIGKILLs raylet, actors and proxy, and nothing else."""
    document = copy.deepcopy(cluster.config)
    port = document["http_options"]["port"] = unused_port()
    document["applications"][0]["deployments"][0]["num_replicas"] = 1
    set_store(document, str(tmp_path / "runs"))
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(document))
    with local_serve(config, log=tmp_path / "serve.log", on_wait=print) as base_url:
        (replica,) = httpx.get(f"{base_url}/v1/populations/replicas", timeout=30).json()["data"]
        marker = psutil.Process(replica["pid"]).environ()[RUN_MARKER]
        engine = [process.pid for process in psutil.Process(replica["pid"]).children(recursive=True)]
        haproxy = [process.pid for process in marked_processes(marker) if process.name() == "haproxy"]
        assert haproxy
        assert set(replica["engine"]["worker_pids"]) < set(engine)
        assert OpenAI(base_url=f"{base_url}/v1", api_key="none").models.list().data[0].id == MODEL
        subprocess.run([str(Path(sys.executable).with_name("ray")), "stop", "--force"], check=True, capture_output=True)
        wait_for("engine and HAProxy are gone", lambda: not any(map(alive, engine + haproxy)), 10)
        with socket.create_server(("127.0.0.1", port)):
            pass


def test_the_store_is_readable_without_the_cluster(cluster: Cluster) -> None:
    from serve_app.driver.store.store import Store

    store = Store(str(cluster.runs))
    for job_id in store.jobs():
        found = [outcome.custom_id for outcome in store.open(job_id).outcomes()]
        assert len(found) == len(set(found)) == store.open(job_id).manifest()["report"]["total"]
        assert not any(math.isnan(outcome.latency_ms) for outcome in store.open(job_id).outcomes())
