"""What the driver's control routes share, and what they answer with."""
