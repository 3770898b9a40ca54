"""How vLLM's processes start, wait and end."""
