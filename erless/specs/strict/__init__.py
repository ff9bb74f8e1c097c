"""Reading what people and strangers write: within bounds, and with every mistake named."""
