"""Folders and object stores by URL, for everything that reads or writes a file."""
