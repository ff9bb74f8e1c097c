"""Render: release + plan + cluster → what the targets on Kubernetes have in common."""
