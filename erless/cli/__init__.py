"""The `erless` command: one file per verb."""
