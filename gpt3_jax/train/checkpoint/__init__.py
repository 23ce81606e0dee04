"""Checkpoints: written in the background, verified, and read to resume training or to use the model."""
