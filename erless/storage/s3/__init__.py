"""A store under `s3://`."""
