from pathlib import Path

import pytest

from serve_app.engine.host import fit
from serve_app.engine.host.fit import choose_for, fit_to_host
from serve_app.engine.host.processor import CAP_ENV, FastType, choose_type, cpu_flags
from serve_app.errors import NotEnoughMemory

GIB = 1 << 30
SLOW = FastType("float32", "told so")
FAST = FastType("bfloat16", "told so")


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [
        ("fpu avx avx2 fma", "float32"),  # AMD EPYC 7003, laptops before 2023
        ("avx2 avx512f avx512_vnni", "float32"),  # Cascade Lake
        ("avx2 avx512f avx512_bf16", "bfloat16"),  # Cooper Lake, AMD EPYC 9004
        ("avx2 avx512f avx512_bf16 amx_bf16 amx_tile", "bfloat16"),  # Sapphire Rapids
        ("fp asimd asimddp", "float32"),  # Graviton 2
        ("fp asimd bf16 i8mm", "bfloat16"),  # Graviton 3
        ("", "float32"),
    ],
)
def test_bfloat16_is_chosen_where_the_processor_has_instructions_for_it(flags: str, dtype: str) -> None:
    assert choose_type(frozenset(flags.split())).dtype == dtype


@pytest.mark.parametrize("cap", ["AVX2", "avx2", "AVX512_CORE"])
def test_a_cap_of_onednn_hides_what_the_processor_has(cap: str) -> None:
    chosen = choose_type(frozenset({"amx_bf16"}), cap)
    assert chosen == FastType("float32", f"{CAP_ENV}={cap} rules out instructions for bfloat16")


@pytest.mark.parametrize("cap", ["AVX512_CORE_BF16", "AVX512_CORE_AMX", "DEFAULT"])
def test_a_cap_that_leaves_bfloat16_changes_nothing(cap: str) -> None:
    assert choose_type(frozenset({"amx_bf16"}), cap).dtype == "bfloat16"


@pytest.mark.parametrize(("machine", "field"), [("x86_64", "flags"), ("aarch64", "Features")])
def test_flags_are_read_of_either_architecture(
    machine: str, field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{field}\t\t: avx2 bf16\nprocessor\t: 1\n")
    assert cpu_flags(tmp_path / "cpuinfo") == {"avx2", "bf16"}


def test_a_machine_without_a_list_of_flags_has_none(tmp_path: Path) -> None:
    assert cpu_flags(tmp_path / "nothing") == frozenset()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"torch_dtype": "bfloat16"}')
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 4000)
    return tmp_path


def test_a_type_that_was_asked_for_is_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "fast_type", lambda: SLOW)
    assert choose_for({"dtype": "bfloat16"}, model) is None
    assert choose_for({"dtype": "auto"}, model) == choose_for({}, model) == SLOW


def test_the_models_own_type_is_kept_where_it_is_fast(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "fast_type", lambda: FAST)
    assert choose_for({}, model) is None


def test_quantised_weights_keep_the_type_that_their_kernels_take(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "fast_type", lambda: SLOW)
    assert choose_for({"quantization": "awq"}, model) is None
    (model / "config.json").write_text('{"quantization_config": {"quant_method": "awq"}}')
    assert choose_for({}, model) is None


@pytest.mark.parametrize(
    ("options", "weights"), [({}, 8000), ({"dtype": "bfloat16"}, 4000), ({"dtype": "float32"}, 8000)]
)
def test_memory_is_that_of_the_type_in_use(
    options: dict[str, str], weights: int, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "fast_type", lambda: SLOW)
    fitted = fit_to_host({**options, "tensor_parallel_size": 2}, model, replicas=1, total=8 * GIB, free=8 * GIB)
    assert fitted.worker == GIB + weights // 2


def test_too_little_memory_names_the_type_that_was_chosen(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "fast_type", lambda: SLOW)
    with pytest.raises(NotEnoughMemory, match=r"weights are in float32, .* engine\.dtype sets another"):
        fit_to_host({}, model, replicas=1, total=8 * GIB, free=GIB)
