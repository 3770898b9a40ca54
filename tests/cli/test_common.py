import pytest
import typer

from serve_app.cli.common import DEFAULT_URL, goes_on_without_us


@pytest.mark.parametrize(("base_url", "where"), [(DEFAULT_URL, ""), ("http://h:1", " --base-url http://h:1")])
def test_ctrl_c_says_that_the_job_goes_on_and_how_to_come_back(
    base_url: str, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, goes_on_without_us("ctr-1", base_url, "ctr predict --resume"):
        raise KeyboardInterrupt
    assert ended.value.exit_code == 130
    assert capsys.readouterr().err.splitlines() == [
        "",
        f"job ctr-1 goes on at {base_url}",
        f"  follow   serve-app population watch ctr-1{where}",
        f"  cancel   serve-app population cancel ctr-1{where}",
        f"  resume   serve-app population resume ctr-1{where}",
        f"  results  serve-app ctr predict --resume ctr-1{where}",
    ]
