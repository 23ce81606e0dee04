"""Loads trained models, and converts them from and to other programs' formats."""

from gpt3_jax.interop.huggingface import from_hf, to_hf
from gpt3_jax.interop.loading import load_model

__all__ = ["from_hf", "load_model", "to_hf"]
