"""Training: the recipe, the step, the loop, checkpoints."""

from gpt3_jax.train.loop import Result, run

__all__ = ["Result", "run"]
