"""Bundled testbeds, and how they were made (`compose.py`). Gold labels are in files of their own."""
