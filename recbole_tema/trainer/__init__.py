"""Training: epochs, checkpoints, several processes, seeds."""
