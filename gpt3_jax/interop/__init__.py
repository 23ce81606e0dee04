"""Converts models from and to other programs' formats."""

from gpt3_jax.interop.huggingface import from_hf, to_hf

__all__ = ["from_hf", "to_hf"]
