"""Clients of the driver, for workloads and commands."""
