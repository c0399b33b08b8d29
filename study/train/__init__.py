"""PyTorch, no Ray: bundles of trials, optimizer, checkpoints, samples."""
