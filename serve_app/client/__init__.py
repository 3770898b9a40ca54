"""The calling side: how workloads and commands reach the driver."""
