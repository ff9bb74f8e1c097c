"""The stages together, on real data."""
