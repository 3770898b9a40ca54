"""Parts of the values file: its options' fields, and how it is read and merged. `values.py` has the whole."""
