"""The model: a parameter table, pure functions over pytrees."""

from gpt3_jax.model.params import Params, count_params, init
from gpt3_jax.model.transformer import forward

__all__ = ["Params", "count_params", "forward", "init"]
