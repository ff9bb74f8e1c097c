"""The folder of a deployment: its state, sockets, logs and the supervisor's own events."""
