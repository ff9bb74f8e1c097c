"""Machines: their prices, what a plan may use of them, and packing replicas onto them."""
