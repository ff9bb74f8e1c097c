"""Verbs that run a release, ask it and stop it."""
