"""A function's process, from its start to its exit code."""
