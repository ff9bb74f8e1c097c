"""Foreign checkpoints and datasets in, model bundles and access logs out."""
