"""Bundled testbeds and their generator (`compose.py`). Gold labels are in separate files."""
