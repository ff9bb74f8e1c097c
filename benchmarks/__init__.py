"""What the numbers in the documentation come from: one script per set of numbers."""
