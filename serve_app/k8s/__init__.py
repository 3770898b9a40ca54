"""Builds Kubernetes manifests from k8s/values.yaml and checks them against rules."""
