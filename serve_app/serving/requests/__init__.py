"""Requests as values that cross to another replica."""
