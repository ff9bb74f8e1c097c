"""From a plan and a bundle to a release: shards as artifacts, and the stores that hold them."""
