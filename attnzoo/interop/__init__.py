"""Convert state dicts of other implementations."""
