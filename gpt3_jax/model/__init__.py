"""The model: a parameter table, pure functions over pytrees."""

from gpt3_jax.model.checked import decode_step, forward, prefill
from gpt3_jax.model.decode import decode_weights
from gpt3_jax.model.params import Params, count_params, init

__all__ = ["Params", "count_params", "decode_step", "decode_weights", "forward", "init", "prefill"]
