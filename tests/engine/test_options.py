import pytest

from serve_app.engine.options import check_options, known_options
from serve_app.errors import BadSettings, UnknownOption


def test_options_of_the_engine_and_of_the_front_end_are_known_apart() -> None:
    kinds = known_options()
    assert kinds["tensor_parallel_size"] == kinds["model"] == kinds["scheduling_policy"] == "engine"
    assert kinds["chat_template"] == kinds["enable_prompt_tokens_details"] == "front end"


@pytest.mark.parametrize(
    ("wrong", "near"), [("max_num_seq", "max_num_seqs"), ("tensor-parallel-sise", "tensor_parallel_size")]
)
def test_an_unknown_option_is_refused_with_the_nearest_match(wrong: str, near: str) -> None:
    with pytest.raises(UnknownOption, match=f"engine.{wrong}: .* did you mean '{near}'"):
        check_options({"model": "m", wrong: 1})


@pytest.mark.parametrize("option", [{"port": 1}, {"distributed_executor_backend": "ray"}])
def test_what_serve_owns_cannot_be_set(option: dict[str, object]) -> None:
    with pytest.raises(BadSettings, match=f"engine.{next(iter(option))} cannot be set here"):
        check_options({"model": "m", **option})


@pytest.mark.parametrize("value", [0, -1, "two", 1.5, True])
def test_a_size_that_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(BadSettings, match="engine.tensor_parallel_size must be a whole number"):
        check_options({"model": "m", "tensor_parallel_size": value})


def test_a_missing_model_is_named() -> None:
    with pytest.raises(BadSettings, match="engine.model is missing"):
        check_options({"tensor_parallel_size": 2})
