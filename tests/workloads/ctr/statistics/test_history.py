from pathlib import Path

import pytest

from serve_app.errors import BadSettings
from serve_app.workloads.ctr.statistics.history import observed_interval, read_history

CSV = "ad,platform,impressions,clicks\nA new phone,tiktok,1000,12\n"
YAML = "- {ad: A new phone, platform: tiktok, impressions: 1000, clicks: 12}\n"


@pytest.mark.parametrize(("name", "text"), [("h.csv", CSV), ("h.csv", "\ufeff" + CSV), ("h.yaml", YAML)])
def test_csv_and_yaml_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    (ad,) = read_history(tmp_path / name)
    assert (ad.ad, ad.platform, ad.impressions, ad.clicks) == ("A new phone", "tiktok", 1000, 12)


def test_a_german_spreadsheet_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_bytes("ad;platform;impressions;clicks;\r\nKöln, jetzt;tiktok;1000;12;\r\n".encode("cp1252"))
    (ad,) = read_history(path)
    assert (ad.ad, ad.impressions) == ("Köln, jetzt", 1000)


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "h.csv").write_bytes(b"PK\x03\x04")
    with pytest.raises(BadSettings, match=r"h\.csv: is a zip file or an Excel workbook"):
        read_history(tmp_path / "h.csv")


def test_every_wrong_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "h.csv"
    path.write_text(CSV + "B,tiktok,10,11\nC,tiktok,ten,1\nD,tiktok,10\nE,tiktok,10,1,9\n")
    with pytest.raises(BadSettings) as caught:
        read_history(path)
    for said in ("row 2: 11 clicks exceed 10", "row 3: impressions", "row 4: clicks", "row 5: None"):
        assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("h.yaml", "ads: 3", "must be a list"),
        ("h.yaml", "- {ad: x, platform: y, impressions: 1, click: 0}", "click: Extra"),
        ("h.yaml", "- [", "h.yaml"),
        ("h.yaml", "[" * 5000, "nested deeper"),
        ("h.csv", "ad,platform,impressions,clicks\n", "has no ads"),
    ],
)
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadSettings, match=said):
        read_history(tmp_path / name)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="nowhere.csv: No such file"):
        read_history(tmp_path / "nowhere.csv")


def test_an_observed_rates_interval_is_wilsons() -> None:
    # Newcombe (1998), table I: 81 of 263, score method without continuity correction: 0.2553 to 0.3662.
    assert observed_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
