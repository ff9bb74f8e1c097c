"""Verbs that bring a model in and look at its accesses."""
