"""Over HTTP too a misspelt field is answered with the one that was meant."""

import pytest

from tests.driver.kit import MakeJobs, serve
from tests.fakes import FakePool


@pytest.mark.parametrize(
    ("fields", "meant"),
    [
        ({"max_token": 1}, "max_tokens"),
        ({"provider": {"base_url": "http://x", "model": "m", "concurency": 2}}, "concurrency"),
    ],
)
async def test_a_misspelt_field_of_a_job_is_answered_with_the_one_that_was_meant(
    make_jobs: MakeJobs, fields: dict[str, object], meant: str
) -> None:
    pool = FakePool(["a"])
    async with await serve(await make_jobs(pool), pool) as client:
        answer = await client.post("/", json={"rows": [{"custom_id": "1", "prompt": "x"}], **fields})
        assert answer.status_code == 400
        assert f"did you mean '{meant}'?" in answer.json()["error"]["message"]
