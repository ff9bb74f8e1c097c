"""From a profile to a costed set of functions."""
