"""The same model served in other ways, side by side: `python -m loadtests.peers.compare`."""
