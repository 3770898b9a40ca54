"""A Helm chart of an installation, made by rendering it with placeholders for what is set at install time."""
