"""Which addresses a job may lead to."""

import pytest

from serve_app.addresses import PUBLIC, Reach, is_below


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1",
     "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
     "64:ff9b::7f00:1", "2002:7f00:1::", "::127.0.0.1", "2001:db8::1"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_reached_only_where_named(address: str) -> None:
    assert "`source_urls`" in PUBLIC.refusal("evil.example", 80, address)
    named = Reach.of(["http://inside/data/"], "source_urls")
    assert named.refusal("INSIDE.", 80, address) == ""
    assert named.refusal("inside", 22, address)
    assert named.refusal("outside", 80, address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_reached(address: str) -> None:
    assert PUBLIC.refusal("host.example", 443, address) == ""


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "169.254.170.2"])
def test_metadata_services_are_never_reached(address: str) -> None:
    named = Reach.of([f"http://{address}/" if ":" not in address else f"http://[{address}]/"], "source_urls")
    assert "metadata" in named.refusal(address, 80, address)


def test_a_url_that_has_a_name_is_looked_up_later() -> None:
    assert PUBLIC.refusal_of_url("http://localhost/x") == ""
    assert PUBLIC.refusal_of_url("http://[::1]:8000/x")
    assert PUBLIC.refusal_of_url("https://127.0.0.1/x")


@pytest.mark.parametrize(
    ("url", "above", "expected"),
    [
        ("https://host/data/x.csv", "https://host/data", True),
        ("https://HOST:443/data/x.csv?signature=1", "https://host/data/", True),
        ("https://host/data", "https://host/data/", True),
        ("https://host/x", "https://host", True),
        ("https://host/data-2/x", "https://host/data", False),
        ("https://host/data/../x", "https://host/data", False),
        ("https://host/data/%2e%2e/x", "https://host/data", False),
        ("https://host.evil/data/x", "https://host", False),
        ("https://host@evil/data", "https://host", False),
        ("https://user:word@host/data", "https://host", False),
        ("https://host:444/data", "https://host/data", False),
        ("http://host/data", "https://host/data", False),
        ("s3://bucket/a/x.csv", "s3://bucket/a", True),
        ("s3://bucket-2/a/x.csv", "s3://bucket", False),
        ("s3://bucket/a/x.csv?endpoint_override=evil", "s3://bucket/a", False),
        ("s3://bucket/a/x?endpoint_override=in:9000", "s3://bucket/a?endpoint_override=in:9000", True),
        ("abfss://own@account/x", "abfss://own@account", True),
        ("abfss://other@account/x", "abfss://own@account", False),
    ],
)  # fmt: skip
def test_a_url_is_below_another_as_a_file_is_in_a_folder(url: str, above: str, expected: bool) -> None:
    assert is_below(url, above) is expected
