"""Which data type a processor computes fast.

Models usually use bfloat16, which a processor without instructions for it emulates: on an AMD EPYC with AVX2 alone
(family 25 model 1) `F.linear` of 512 x 576 x 1536 reached 15 GFLOP/s in bfloat16 and 116 in float32, and a population
never ended. So there, unless configured, the engine takes float32.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Flags of /proc/cpuinfo with which bfloat16 is fast: x86-64's, and aarch64's.
BFLOAT16_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm's BF16"}
# oneDNN's instruction cap (https://oneapi-src.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html): with one of
# these bfloat16 is emulated on any processor. Tests use it to hide instructions.
CAP_ENV = "ONEDNN_MAX_CPU_ISA"
CAPS_WITHOUT_BFLOAT16 = frozenset(
    {"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"}
)


class FastType(NamedTuple):
    """A data type by vLLM's name, and the reason for it."""

    dtype: str
    reason: str


def fast_type() -> FastType:
    """The faster of bfloat16 and float32 on this machine."""
    return choose_type(cpu_flags(), os.environ.get(CAP_ENV, ""))


def choose_type(flags: frozenset[str], cap: str = "") -> FastType:
    """The fast one on a processor with these flags, where oneDNN may use `cap` at most ("": all)."""
    if cap.upper() in CAPS_WITHOUT_BFLOAT16:
        return FastType("float32", f"{CAP_ENV}={cap} rules out instructions for bfloat16")
    for flag, name in BFLOAT16_FLAGS.items():
        if flag in flags:
            return FastType("bfloat16", f"the processor has {name}")
    return FastType("float32", "the processor has no instructions for bfloat16 (AMX or AVX512-BF16)")


@cache
def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Instruction sets of the first processor, from the kernel's list; empty without one."""
    field = "Features" if platform.machine() == "aarch64" else "flags"
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith(field)), ()))
