"""The artifacts that stages hand to each other: one file and one definition each."""
