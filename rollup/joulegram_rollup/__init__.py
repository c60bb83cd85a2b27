"""Reads back what was recorded."""
