"""The process that runs functions on this machine: owns their sockets, starts, scales, replaces."""
