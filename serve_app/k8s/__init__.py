"""From k8s/values.yaml to Kubernetes manifests, and the rules that they have to keep."""
