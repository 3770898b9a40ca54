"""An engine without a model: deterministic answers in vLLM's shapes, at latencies that are set, or at once.

For clusters larger than the machine at hand, and for the tests of applications, which need every shape of the OpenAI
surface, soon, and no model. So the HTTP application here is its own and imports neither vLLM nor torch: vLLM's classes
over a stand-in for its engine would give the same shapes after 17 s of a core in each replica, and only where vLLM is
installed. `tests/engine/simulated/test_shapes.py` holds the shapes against vLLM's and the openai package's models.

    engine.py      the engine of `engine/protocol.py`: chunks of a population
    app.py         the HTTP application: routes, errors, the header that says simulated
    chat.py  completions.py  responses.py  embeddings.py     what each route answers
    requests.py    what it may be asked
    answers.py     what is "generated": words, JSON by a schema, log-probabilities (structured.py, pen.py: how)
    tokens.py      text to token ids and back
    device.py      time, prefix cache, scripted faults

Equal requests have equal answers, on every replica. Prompt, `seed` and the choice's index decide them; at temperature 0
the prompt alone does. Which tools are called: those that the last user message names, else one by the hash; with
`tool_choice: auto` none once a tool has answered, so an agent's loop ends.
"""
