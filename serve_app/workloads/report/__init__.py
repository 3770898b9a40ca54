"""One page and chart kit for every workload's report."""
