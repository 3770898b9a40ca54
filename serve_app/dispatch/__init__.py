"""Sends rows to replicas and collects the results."""
