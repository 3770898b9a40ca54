"""`serve-app population`: any population, by file or URL, on a running server."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from serve_app.atomic import atomic_write
from serve_app.cli.common import DEFAULT_URL, BaseUrl, Json, console, goes_on_without_us, print_whole, spelling
from serve_app.cli.provider import (
    OWN_REPLICAS,
    RENAMED,
    InputPrice,
    OutputPrice,
    ProviderOptions,
    price_fields,
    provider_options,
)
from serve_app.errors import BadSettings, ServerUnavailable

if TYPE_CHECKING:
    from serve_app.client.populations import PopulationClient
    from serve_app.spec import JobStatus

app = typer.Typer(help="Run populations of rows: submit, watch, fetch results.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(metavar="JOB_ID")]


@app.command(context_settings=spelling(RENAMED))
@provider_options
def submit(
    source: Annotated[
        str, typer.Argument(help="CSV, Excel, JSONL or Parquet: a local file (sent along), or a URL.")
    ] = "",
    spec: Annotated[Path | None, typer.Option("--spec", help="JSON file with the job's fields; options win.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Template of plain text with {column} fields.")] = None,
    system: Annotated[str | None, typer.Option(help="Template of a chat's system message.")] = None,
    user: Annotated[str | None, typer.Option(help="Template of a chat's user message.")] = None,
    labels: Annotated[str | None, typer.Option(help="Score these labels, e.g. Yes,No, instead of generating.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1)] = None,
    temperature: Annotated[float | None, typer.Option(min=0)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="File: answers must be JSON of this schema.")] = None,
    workload: Annotated[str | None, typer.Option(help="Name and version; part of each row's identity.")] = None,
    id_column: Annotated[str | None, typer.Option(help="Column of the rows' ids.")] = None,
    length_column: Annotated[str | None, typer.Option(help="Column of the answers' expected tokens.")] = None,
    format: Annotated[str | None, typer.Option(help="csv, xlsx, jsonl or parquet; default: by the name.")] = None,
    priority: Annotated[int | None, typer.Option(help="Lower goes first; online requests have 0.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Dollars for one replica's hour.")] = None,
    input_price: InputPrice = None,
    output_price: OutputPrice = None,
    reuse: Annotated[bool, typer.Option("--reuse", help="Take answers that other jobs already have.")] = False,
    job_id: Annotated[str | None, typer.Option(help="Default: made from workload and time.")] = None,
    no_upload: Annotated[bool, typer.Option("--no-upload", help="The server reads the path itself.")] = False,
    answering: ProviderOptions = OWN_REPLICAS,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    as_json: Json = False,
    base_url: BaseUrl = DEFAULT_URL,
) -> None:
    """Queue a population and print the job's id."""
    from serve_app.spec import JobSpec

    chat = [{"role": role, "content": text} for role, text in (("system", system), ("user", user)) if text is not None]
    said = _read_json(spec) if spec else {}
    answered_by = answering.job_fields()
    external = "provider" in answered_by or "provider" in said
    fields: dict[str, Any] = {
        "prompt": prompt,
        "messages": chat or None,
        "labels": labels.split(",") if labels else None,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "structured": {"json": _read_json(json_schema)} if json_schema else None,
        "workload": workload,
        "id_column": id_column,
        "length_column": length_column,
        "format": format,
        "priority": priority,
        "reuse": reuse or None,
        "job_id": job_id,
        **answered_by,
        **price_fields(external, price, input_price, output_price),
    }
    fields |= {"source": source or None}
    job = JobSpec.parse({**said, **{k: v for k, v in fields.items() if v is not None}})
    local = source and "://" not in source and not no_upload
    if local and job.format is None:
        _say_table(Path(source), Console(stderr=True, quiet=as_json, soft_wrap=True))
    client = _client(base_url)
    name = client.upload(job) if local else client.submit(job)
    if watch:
        _follow(client, name, as_json)
    else:
        print(json.dumps({"id": name}) if as_json else name)


@app.command()
def watch(job_id: Job, as_json: Json = False, base_url: BaseUrl = DEFAULT_URL) -> None:
    """Follow a job to its end; exit code 1 unless every row is answered."""
    _follow(_client(base_url), job_id, as_json)


@app.command()
def status(job_id: Job, as_json: Json = False, base_url: BaseUrl = DEFAULT_URL) -> None:
    """State, counts, rate, cost."""
    _show(_client(base_url).status(job_id), as_json)


@app.command("list")
def jobs(
    every: Annotated[bool, typer.Option("--all", help="Each job of a comparison or calibration in its own line.")] = (
        False
    ),
    as_json: Json = False,
    base_url: BaseUrl = DEFAULT_URL,
) -> None:
    """All jobs, newest first; a comparison's or calibration's in one line."""
    found = _client(base_url).list()
    if as_json:
        print(json.dumps([job.model_dump(mode="json") for job in found]))
        return
    groups: dict[str, list[JobStatus]] = {}
    for job in found:
        groups.setdefault(job.id if every else job.group or job.id, []).append(job)
    table = Table("job", "state", "rows", "failed", "rows/s", "message")
    for name, members in groups.items():
        done, total, bad = (sum(getattr(job, n) for job in members) for n in ("done", "total", "unanswered"))
        states = ", ".join(dict.fromkeys(job.state for job in members))
        rate = sum(job.rows_per_s for job in members if job.state.active or len(members) == 1)
        message = next((job.message for job in members if job.message), "")
        if members[0].id != name:
            message = ": ".join(filter(None, [f"{len(members)} jobs", message]))
        table.add_row(name, states, f"{done:,}/{total:,}", str(bad), f"{rate:.1f}", message)
    print_whole(table)


@app.command()
def results(
    job_id: Job,
    format: Annotated[str, typer.Option(help="jsonl, csv or parquet; default: by the name of --out, else jsonl.")] = "",
    out: Annotated[Path | None, typer.Option(help="File; default: standard output.")] = None,
    after: Annotated[int, typer.Option(min=0, help="Leave out so many outcomes.")] = 0,
    inputs: Annotated[bool, typer.Option("--inputs", help="Your data's columns and order, answers beside.")] = False,
    base_url: BaseUrl = DEFAULT_URL,
) -> None:
    """Committed outcomes, also while the job runs."""
    ending = out.suffix.removeprefix(".").lower() if out is not None else ""
    form = format or (ending if ending in ("csv", "parquet") else "jsonl")
    blocks = _client(base_url).results(job_id, form, after=after, inputs=inputs)
    if out is None:
        for block in blocks:
            sys.stdout.buffer.write(block)
        return
    try:
        with atomic_write(out) as file:  # keeps the old file until all is written
            file.writelines(blocks)
    except OSError as error:
        raise BadSettings(f"--out {out}: {error.strerror or error}") from error


@app.command()
def cancel(job_id: Job, as_json: Json = False, base_url: BaseUrl = DEFAULT_URL) -> None:
    """Stop a job; committed outcomes stay."""
    _show(_client(base_url).cancel(job_id), as_json)


@app.command()
def resume(job_id: Job, as_json: Json = False, base_url: BaseUrl = DEFAULT_URL) -> None:
    """Run the rows of a cancelled or failed job that have no outcome."""
    _show(_client(base_url).resume(job_id), as_json)


@app.command()
def delete(job_id: Job, base_url: BaseUrl = DEFAULT_URL) -> None:
    """Remove a job and its results."""
    _client(base_url).delete(job_id)
    console.print(f"{job_id} is deleted", highlight=False)


def _client(base_url: str) -> PopulationClient:
    from serve_app.client.populations import PopulationClient

    return PopulationClient(base_url)


def _say_table(path: Path, output: Console) -> None:
    """Print how a local table is read; nothing for other files. Raises BadSettings before sending."""
    from serve_app.tables.table import DELIMITED, WORKBOOKS, read_table

    if path.suffix.lower() not in (*DELIMITED, *WORKBOOKS):
        return
    try:
        table = read_table(path)
    except (BadSettings, OSError) as error:
        raise BadSettings(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    said = "; ".join([f"{len(table.columns)} columns ({', '.join(table.columns)})", *table.notes])
    output.print(f"{path} read as {table.read_as}: {said}", markup=False, highlight=False)


def _follow(client: PopulationClient, job_id: str, as_json: bool) -> None:
    from serve_app.client.progress import JobProgress
    from serve_app.spec import JobState

    output = Console(stderr=True, quiet=as_json)
    with goes_on_without_us(job_id, client.base_url), JobProgress(output) as progress:
        final = client.wait(job_id, progress)
    _show(final, as_json)
    if final.state is not JobState.COMPLETED:
        raise ServerUnavailable(f"job {job_id} ended {final.state}: {final.message or 'see its results'}")


def _show(status: JobStatus, as_json: bool) -> None:
    if as_json:
        print(status.model_dump_json())
        return
    table = Table(show_header=False, box=None)
    from serve_app.client.progress import duration

    eta = f", {duration(status.eta_s)} left" if status.eta_s else ""
    lines = {
        "job": status.id,
        "state": f"{status.state}{': ' + status.message if status.message else ''}",
        "rows": f"{status.done:,} of {status.total:,}: {status.ok:,} ok, {status.invalid:,} invalid, "
        f"{status.failed:,} failed, {status.reused:,} reused",
        "rate": f"{status.rows_per_s:.1f} rows/s over {duration(status.run_s)}{eta}",
        "replicas": f"{status.replicas_chosen} used of {status.replicas_available}",
        "by replica": ", ".join(f"{name}: {rows:,}" for name, rows in status.rows_by_replica.items()),
        "model": f"{status.model}{' (SIMULATED)' if status.simulated else ''}",
        "cached tokens": f"{status.cached_share:.1%} of {status.prompt_tokens:,}",
        **({"cost": f"${status.cost:,.4g}"} if status.cost else {}),
        "folder": status.folder,
    }
    for name, text in lines.items():
        table.add_row(name, text)
    print_whole(table)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise BadSettings(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise BadSettings(f"{path} is not JSON: {error}") from error
