"""Jobs: planned, run part by part, committed, and gone on with after a restart."""
