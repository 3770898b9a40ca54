"""The engine behind one protocol: `vllm.py` runs the model, `simulated.py` needs no hardware."""
