"""A dataset of atomic files: read, checked, written, with what it was made of."""
