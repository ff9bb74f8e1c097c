"""From access logs to hotness, from measurements to throughput curves."""
