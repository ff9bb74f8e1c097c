"""What a function costs: calls, memory, and the terms that were measured."""
