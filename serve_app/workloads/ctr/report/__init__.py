"""A run's figures as a table, as files and as a page."""
