"""Replicas that are asked directly, past Serve's router: each by its name, by HTTP of its own."""
