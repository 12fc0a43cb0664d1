"""Training: one loop for every objective, run folders, checkpoints, sweeps."""
