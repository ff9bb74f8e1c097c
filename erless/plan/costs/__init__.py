"""Cost of a function: its calls, its memory, and the terms that were measured."""
