"""A plan under traffic, simulated: see `engine`."""
