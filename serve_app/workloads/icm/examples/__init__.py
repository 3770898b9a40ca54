"""Examples, their labels and constraints."""
