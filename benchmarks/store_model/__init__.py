"""A model checker of the store's log: writers and readers whose requests come in any order, fail, are late or their
last. See `__main__.py`."""
