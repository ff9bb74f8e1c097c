"""Verbs that cut a model into a release."""
