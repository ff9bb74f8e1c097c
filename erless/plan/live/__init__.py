"""Plans under live heat: what a deployed one costs now, and one that moves few rows."""
