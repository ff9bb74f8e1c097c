"""The Kubernetes API as a deploy needs it: apply, watch, wait, lock, and why a pod does not run."""
