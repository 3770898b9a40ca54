"""The contract of our HTTP ingress with OpenAI clients: what must be answered, and in what shape it is refused.

test_sdk_*.py      the stock OpenAI SDK, one feature a test
test_http_*.py     plain HTTP as in OpenAI's documentation, vLLM's further routes, and every kind of error
fuzz.py, clamp.py  requests made up by schemathesis from the server's own OpenAPI documents
__main__.py        all of it, counted: `python -m tests.contract` (`make contract`)
"""
