"""The search, its checkpoint and result."""
