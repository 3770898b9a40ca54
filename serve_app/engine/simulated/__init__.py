"""An engine without a model: deterministic answers in vLLM's shapes, with configured latencies or none.

For clusters larger than this machine, and for application tests. The HTTP application imports neither vLLM nor torch:
vLLM's classes take 17 s of a core in each replica. `tests/engine/simulated/test_shapes.py` checks shapes against vLLM's
and the openai package's models.

    engine.py      the engine of `engine/protocol.py`
    app.py         the HTTP application
    chat.py  completions.py  responses.py  embeddings.py     answers of each route
    requests.py    request models
    answers.py     words, JSON, log-probabilities (by structured.py, pen.py)
    tokens.py      tokenizer
    device.py      time, prefix cache, scripted faults

Equal requests have equal answers on every replica. Prompt, `seed` and choice index determine them; at temperature 0 the
prompt alone. Tools named in the last user message are called, else one by the hash. With `tool_choice: auto` none is
called after a tool has answered, so an agent's loop ends.
"""
