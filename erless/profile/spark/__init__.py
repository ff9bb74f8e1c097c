"""Counting accesses on Spark: the same readers, the same profile."""
