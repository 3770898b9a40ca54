"""Config files and local servers started from one."""
