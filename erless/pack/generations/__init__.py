"""Generations of a release: changed rows read, checked, cut by shard and published."""
