"""The machine that an engine runs on: cores, memory and fast data types."""
