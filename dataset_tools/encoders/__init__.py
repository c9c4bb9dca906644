"""Encoders of texts and images."""
