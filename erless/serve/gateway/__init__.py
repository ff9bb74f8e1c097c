"""The gateway: bucketize, fan out, combine."""
