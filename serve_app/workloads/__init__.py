"""Workloads turn rows into prompts and completions into results. They depend on the client and the schema only."""
