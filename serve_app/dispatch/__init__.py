"""From rows to replicas and back, without files or HTTP."""
