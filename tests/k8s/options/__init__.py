"""What a values file may add to an installation, one concern a file."""
