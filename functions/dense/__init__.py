"""The dense function."""
