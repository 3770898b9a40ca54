"""vLLM's processes: how they start, wait for each other and end."""
