"""Config files, and a server started from one on this machine."""
