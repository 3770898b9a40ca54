"""Populations as they come: files, lines, generators, and the requests of batch files."""
