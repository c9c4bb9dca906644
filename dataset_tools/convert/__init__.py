"""Raw data of several domains become one cross-domain dataset of atomic files, out of core."""
