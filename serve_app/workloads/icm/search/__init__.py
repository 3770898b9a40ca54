"""The search for labels, its checkpoint and what it found."""
