"""Intensity: versioned tables, regions, the fallback chain, exact carbon and its interval."""
