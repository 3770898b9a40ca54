"""The real driver against more replicas, and more rows, than this machine has room for. Replicas are SIMULATED.

Everything of the driver is real: reading Parquet, templates, content hashes, prefix groups, dispatch, Parquet
segments and manifests on this disk. The replicas are simulated in this process, as fast as one TP=2 replica of the
default model was measured on two cores (settings.SimulatedSettings); tokenising is replaced by a token a character.

`efficiency` at N replicas is their throughput over N times that of one, each with the same number of rows a replica.
`dispatch_rows_per_s_per_core` is rows over the CPU seconds of this whole process, with replicas that answer at once.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import console, machine, publish
from benchmarks.simulated import InstantPool, SimulatedPool
from serve_app.dispatch.pool import ReplicaPool
from serve_app.driver.jobs.job import make_dispatcher
from serve_app.driver.jobs.registry import Jobs
from serve_app.settings import DriverSettings, SimulatedSettings
from serve_app.spec import JobSpec, JobStatus

# 160 shared characters and 45 of the row's own: the calibrated engine's 205 tokens, 160 of them shared.
SHARED = "You estimate whether a person clicks on an online ad. Most people ignore most ads. "
SHARED = (SHARED * 2)[:160]
SCALES = (1, 8, 64, 125)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=None, help="write the JSON line there too")
    parser.add_argument("--quick", action="store_true", help="fewer rows a replica, and 500,000 for the memory")
    args = parser.parse_args()
    per_replica, many = (250, 500_000) if args.quick else (750, 5_000_000)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), per_replica, many)
    efficiency = result["efficiency"]
    lines = [
        [f"efficiency at {n}", f"{efficiency[str(n)]:.3f}", f"{result['rows_per_s'][str(n)]:,.0f} rows/s"]
        for n in SCALES
    ]
    lines += [
        ["dispatched and committed", f"{result['dispatch_rows_per_s_per_core']:,.0f}", "rows/s a core"],
        ["new replica at work after", f"{result['time_to_use_new_replica_s']:.2f}", "s"],
        [f"peak memory, {many:,} rows", f"{result['rows_5m_peak_rss_mb']:,.0f}", "MB"],
    ]
    publish("the driver against SIMULATED replicas", ["", "", ""], lines, {**result, **machine()}, args.json)


def measure(folder: Path, per_replica: int, many: int) -> dict[str, Any]:
    """All figures. Raises SystemExit when a run loses a row."""
    calibrated = SimulatedSettings()
    rates = {}
    asyncio.run(run(folder, SimulatedPool(_names(2), SimulatedSettings(step_ms=0, prefill_ms_per_token=0)), 2_000))
    for replicas in SCALES:
        status = asyncio.run(run(folder, SimulatedPool(_names(replicas), calibrated), replicas * per_replica))
        rates[replicas] = status.total / status.run_s
        console.print(f"{replicas} simulated replicas: {rates[replicas]:,.1f} rows/s")
    joined_s = asyncio.run(time_to_use_new_replica(folder, calibrated))
    process = psutil.Process()
    before_mb = process.memory_info().rss / 1e6
    with PeakMemory() as memory:
        cpu, started = time.process_time(), time.perf_counter()
        status = asyncio.run(run(folder, InstantPool(64), many))
        cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - started
    return {
        "simulated": True,
        "efficiency": {str(n): round(rate / (n * rates[1]), 4) for n, rate in rates.items()},
        "rows_per_s": {str(n): round(rate, 2) for n, rate in rates.items()},
        "rows_per_replica": per_replica,
        "dispatch_rows_per_s_per_core": round(many / cpu_s, 1),
        "dispatch_rows_per_s": round(many / wall_s, 1),
        "time_to_use_new_replica_s": round(joined_s, 3),
        "rows_5m_peak_rss_mb": round(memory.peak_mb, 1),
        "rss_before_mb": round(before_mb, 1),
        "rows_for_memory": many,
        "rss_growth_mb_per_million_rows": round(memory.slope(many) * 1e6, 2),
        "calibration": calibrated.model_dump(),
    }


async def run(folder: Path, pool: ReplicaPool, rows: int) -> JobStatus:
    """One job over a new Parquet file of `rows` rows."""
    settings = DriverSettings(store=str(folder / "runs"), min_rows_per_replica=1)
    async with make_dispatcher(pool, settings) as dispatcher:
        jobs = Jobs(settings, dispatcher)
        job_id = await jobs.submit(job_of(population(folder, rows)))
        while (status := await jobs.status(job_id)).state.active:
            await asyncio.sleep(0.1)
    if (status.state, status.ok) != ("completed", rows):
        raise SystemExit(f"void: {status}")
    return status


async def time_to_use_new_replica(folder: Path, calibrated: SimulatedSettings) -> float:
    """Seconds from a replica being ready to its first chunk, in the middle of a job; the mean of five."""
    settings = DriverSettings(store=str(folder / "runs"), min_rows_per_replica=1)
    pool = SimulatedPool(_names(4), calibrated)
    times = []
    async with make_dispatcher(pool, settings) as dispatcher:
        jobs = Jobs(settings, dispatcher)
        job_id = await jobs.submit(job_of(population(folder, 4000)))
        while (await jobs.status(job_id)).ok < 100:
            await asyncio.sleep(0.05)
        for number in range(5):
            name = f"late-{number}"
            await asyncio.sleep(0.37)
            pool.join(name)
            joined = time.monotonic()
            while not pool.chunks[name]:
                await asyncio.sleep(0.005)
            times.append(time.monotonic() - joined)
        await jobs.cancel(job_id)
    return sum(times) / len(times)


def job_of(path: Path) -> JobSpec:
    """Score each row of the file."""
    return JobSpec(
        source=str(path), prompt=SHARED + "{profile}", labels=("Yes", "No"), workload="scale/v1", id_column="id"
    )


def population(folder: Path, rows: int, block: int = 100_000) -> Path:
    """A Parquet file of `rows` people: an id and 45 characters."""
    path = folder / f"{rows}.parquet"
    schema = pa.schema([("id", pa.string()), ("profile", pa.string())])
    if not path.exists():
        with pq.ParquetWriter(path, schema) as writer:
            for start in range(0, rows, block):
                numbers = range(start, min(rows, start + block))
                ids = [f"person-{i:08d}" for i in numbers]
                profiles = [f"{i:09d}, a teacher of {i % 60 + 20}, earns {i % 90 + 20:03d}k, single" for i in numbers]
                writer.write_table(pa.table({"id": ids, "profile": [p[:45] for p in profiles]}, schema=schema))
    return path


class PeakMemory:
    """The peak of this process's resident memory in MB, and its slope in MB a row of progress (least squares over
    the second half of the time, when caches are warm; rows are taken to progress evenly)."""

    def __init__(self, every_s: float = 0.1) -> None:
        self._every_s = every_s
        self._samples: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._stop.wait(self._every_s):
            self._samples.append(process.memory_info().rss / 1e6)

    @property
    def peak_mb(self) -> float:
        """Highest sample."""
        return max(self._samples)

    def slope(self, rows: int) -> float:
        """MB a row."""
        import numpy as np

        late = self._samples[len(self._samples) // 2 :]
        return float(np.polyfit(np.linspace(rows / 2, rows, len(late)), late, 1)[0])


def _names(count: int) -> list[str]:
    return [f"replica-{i:03d}" for i in range(count)]


if __name__ == "__main__":
    main()
