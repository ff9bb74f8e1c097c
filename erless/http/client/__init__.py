"""HTTP/1.1 calls over persistent connections."""
