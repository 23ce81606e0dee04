"""ZeRO: `stages` says which collective runs when, `weight` is what a layer gets, `transport` is how bytes travel."""

from gpt3_jax.parallel.zero.depth import scan_blocks
from gpt3_jax.parallel.zero.stages import Zero, parameter_partitions
from gpt3_jax.parallel.zero.weight import Kind, Weight, save_all_but_weights

__all__ = ["Kind", "Weight", "Zero", "parameter_partitions", "save_all_but_weights", "scan_blocks"]
