"""A real S3 server for the tests of stores, started once a module."""

from collections.abc import Iterator

import pytest

from serve_app.storage.filesystem import resolve


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of a bucket, less its query and the query, of an S3 server of our own."""
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        try:
            host, port = server.get_host_and_port()
            query = f"endpoint_override={host}:{port}&scheme=http"
            filesystem, _ = resolve(f"s3://bucket?{query}&allow_bucket_creation=true")
            filesystem.create_dir("bucket")
            yield f"s3://bucket/{{}}?{query}"
        finally:
            server.stop()
