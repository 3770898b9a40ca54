"""External OpenAI-compatible providers, behind the same protocol as our own replicas."""
