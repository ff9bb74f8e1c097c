"""The sparse function."""
