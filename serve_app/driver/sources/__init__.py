"""Populations: files, lines, generators, and the requests of batch files."""
