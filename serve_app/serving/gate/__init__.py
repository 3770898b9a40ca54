"""What stands between a client and an engine: keys, limits, accounts and the request log."""
