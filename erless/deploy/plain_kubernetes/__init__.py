"""Target `kubernetes`: releases as Deployments, Services and autoscalers, without Knative."""
