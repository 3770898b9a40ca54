"""Manifests and cluster scripts, without a cluster. `python -m tests.k8s` is `make k8s-check`."""
