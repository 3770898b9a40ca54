"""OpenAI's files and batches, over the driver's jobs."""
