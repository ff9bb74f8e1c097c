"""Read files that people and strangers write: within bounds, and with every mistake named."""
