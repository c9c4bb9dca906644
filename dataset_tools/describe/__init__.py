"""What a dataset of atomic files holds: measures, checks, a figure and a page."""
