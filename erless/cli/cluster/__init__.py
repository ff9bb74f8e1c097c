"""Verbs that make a Kubernetes cluster and its images ready."""
