"""A Kubernetes of one node on this machine, to try `k8s/` on: upstream's own programs, no k3s."""
