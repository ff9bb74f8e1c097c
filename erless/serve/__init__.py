"""The data path: sparse functions, dense tower, gateway, and the wire between them."""
