"""The engine behind one protocol: `vllm.py` runs the model, `simulated.py` stands in where hardware is missing."""
