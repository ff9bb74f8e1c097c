"""Target `knative`: releases on Kubernetes with Knative Serving."""
