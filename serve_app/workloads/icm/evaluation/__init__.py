"""Compares labels with gold labels and baselines. The search never imports this."""
