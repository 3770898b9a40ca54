"""Banks, user files and samples of people."""
