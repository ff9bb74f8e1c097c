"""Ways to cut a model into functions."""
