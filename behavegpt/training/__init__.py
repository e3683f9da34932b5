"""The training loop, its checkpoints and run folders, evaluation, and what they need of a
device."""
