"""Measures the attached devices: the training step, generation, the data loader, checkpoints."""
