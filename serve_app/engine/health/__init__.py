"""Health checks of an engine."""
