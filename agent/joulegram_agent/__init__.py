"""Measures the node's energy and publishes ticks of one second; privileged, so standard library only."""
