"""What all OpenAI routes share."""
