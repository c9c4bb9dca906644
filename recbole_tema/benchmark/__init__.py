"""Many models, many seeds, one split and the same candidates: runs, statistics and a report."""
