"""Targets that run a release: this machine, or Knative."""
