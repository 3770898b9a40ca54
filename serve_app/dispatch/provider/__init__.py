"""External OpenAI-compatible providers as a replica pool."""
