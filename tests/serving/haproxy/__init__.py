"""HAProxy itself, with the configuration that Serve writes and this project completes."""
