"""The training loop, checkpoints, run folders and evaluation, and what they need of a device."""
