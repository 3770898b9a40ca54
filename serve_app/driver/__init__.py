"""The driver: spreads a population over the replicas and commits one durable outcome a row."""
