"""The scaling decision, pure, shared by the local target and the simulator: `kpa.py`."""
