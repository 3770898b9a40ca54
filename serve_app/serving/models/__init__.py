"""Several models on one base URL."""
