"""What runs in the cloud: one process each."""
