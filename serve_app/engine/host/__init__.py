"""The machine that an engine runs on: its cores, its memory and what it computes fast."""
