"""Folders and object stores by URL."""
