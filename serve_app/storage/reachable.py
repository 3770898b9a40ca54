"""Whether anybody answers where an object store should be, asked before its cloud's own library is.

Those libraries try for minutes (Arrow 26: S3 111 s, Google 15 minutes), and a thread of the driver waits with them.
"""

from __future__ import annotations

import os
from urllib.parse import SplitResult, parse_qs, urlsplit

import httpx

ANSWER_S = 5.0
# An answer may be lost.
TRIES = 2


def check_reachable(url: str) -> None:
    """Raise OSError where the server of an object store's URL does not answer; other URLs pass."""
    endpoint = endpoint_of(urlsplit(url))
    problem: Exception | None = None
    for _ in range(TRIES if endpoint else 0):
        try:
            # No secret is sent, and any answer will do: certificates are the cloud's library's to check.
            httpx.head(endpoint, timeout=ANSWER_S, verify=False, follow_redirects=False)
            return
        except (httpx.TimeoutException, httpx.ConnectError) as error:
            problem = error
        except Exception:  # an answer that is no HTTP, a proxy's trouble: the cloud's library is to tell
            return
    if problem is not None:
        late = isinstance(problem, httpx.TimeoutException)
        how = f"does not answer within {ANSWER_S:g} s" if late else f"cannot be reached ({problem})"
        raise OSError(f"{endpoint} {how}")


def endpoint_of(url: SplitResult) -> str:
    """Where Arrow would look for the bucket; "" for URLs of other kinds."""
    asked = {name: values[-1] for name, values in parse_qs(url.query).items()}
    match url.scheme.lower():
        case "s3":
            region = asked.get("region")
            default = f"https://s3.{region}.amazonaws.com" if region else "https://s3.amazonaws.com"
            environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            place = asked.get("endpoint_override") or environment or default
        case "gs" | "gcs":
            environment = os.environ.get("CLOUD_STORAGE_EMULATOR_ENDPOINT")
            place = asked.get("endpoint_override") or environment or "https://storage.googleapis.com"
        case "abfs" | "abfss":
            user, _, host = url.netloc.rpartition("@")
            account = user.partition(":")[0]
            default = host if "." in host else f"{account}.blob.core.windows.net" if account.isalnum() else ""
            place = asked.get("blob_storage_authority") or default
            asked.setdefault("scheme", "http" if asked.get("enable_tls") == "false" else "https")
        case _:
            return ""
    return place if "://" in place or not place else f"{asked.get('scheme', 'https')}://{place}"
