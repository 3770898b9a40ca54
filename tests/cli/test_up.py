from pathlib import Path

from serve_app.cli.up import engine_line, ready_text
from serve_app.serving.launch.config import ServeConfig

ROOT = Path(__file__).parents[2]


def test_what_is_loaded_is_said_a_line_a_model() -> None:
    one = ServeConfig.load(ROOT / "config.yaml")
    assert [engine_line(engine) for engine in one.engines] == [
        "replicas: 2 replicas of smollm2-135m-instruct, tensor parallel 2"
    ]
    two = ServeConfig.load(ROOT / "config.two-models.yaml")
    assert len({engine_line(engine) for engine in two.engines}) == 2


def test_a_ready_server_says_its_url_a_request_and_how_to_stop_it() -> None:
    text = ready_text(ServeConfig.load(ROOT / "config.yaml"))
    assert "base_url http://127.0.0.1:8000/v1, model smollm2-135m-instruct" in text
    assert "curl -s http://127.0.0.1:8000/v1/chat/completions" in text
    assert "Ctrl-C" in text
