"""From rows to replicas and back: no disk and no HTTP of our own."""
