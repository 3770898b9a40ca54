"""Peers by their own HTTP, without Ray where it can be."""
