"""Searching for cuts of the merged order of rows, and bounds on what a search can find."""
