"""What OpenAI's API has in common on every route."""
