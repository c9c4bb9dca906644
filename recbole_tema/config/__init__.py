"""The configuration of a run: files and layers, keys, rules of their values, models."""
