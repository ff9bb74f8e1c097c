"""Drills: faults on purpose under load, and what became of every query meanwhile."""
