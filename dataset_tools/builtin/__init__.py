"""Datasets that this package builds by itself, with the tags that the project keeps."""
