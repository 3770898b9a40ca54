"""Keys, limits, accounts and the request log."""
