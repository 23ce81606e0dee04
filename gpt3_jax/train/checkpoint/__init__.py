"""Checkpoints: written in the background, checked, found again, and read by what comes after training."""
