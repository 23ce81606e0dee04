"""Completes prompts with a trained model: sampling, beam search, stop strings."""

from gpt3_jax.generation.completion import Completed, Finish, Piece
from gpt3_jax.generation.decoding import Beam, Decoding, Greedy, Sample, Sampling
from gpt3_jax.generation.generator import Generator, generate

__all__ = [
    "Beam",
    "Completed",
    "Decoding",
    "Finish",
    "Generator",
    "Greedy",
    "Piece",
    "Sample",
    "Sampling",
    "generate",
]
