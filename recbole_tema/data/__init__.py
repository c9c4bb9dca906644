"""Datasets: atomic files, flat sequences, the leave-one-out split, loaders."""
