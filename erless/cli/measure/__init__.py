"""Verbs that put a deployment or a plan under load, and show what came of it."""
