"""What targets on Kubernetes share: the API as a deploy needs it, and what they render alike."""
