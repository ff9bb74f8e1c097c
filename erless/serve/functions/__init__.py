"""The functions that hold rows, the dense tower, or the whole model."""
