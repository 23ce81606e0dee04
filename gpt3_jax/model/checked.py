"""The model's public functions on token ids: the inner ones, with their inputs checked.

An index outside a table is no error in JAX, which takes the nearest row: wrong ids would give finite numbers. Here they
are refused where their values are known, and give NaN where they are traced (they are arguments of `jax.jit`,
`jax.vmap`, …) or lie on other processes. Looking at the values of a device's array waits for that device.

What calls the inner functions itself (`transformer.forward`, `decode.prefill`) answers for its ids: the training step's
come from `data.stream`, which checks each row as it is read; generation's from a tokenizer.

Shapes: B rows, T positions, V = the true vocabulary.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3_jax.config import ModelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.model import decode, transformer
from gpt3_jax.model.decode import Cache, DecodeWeights
from gpt3_jax.model.params import Params
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import platform_of


def forward(params: Params, tokens_BT: Any, config: ModelConfig, platform: str | None = None) -> jax.Array:
    """Logits [B, T, V] in fp32 of the token after each position (GPT-3 section 2.1). On one device, all at once.

    Args:
        tokens_BT: integers of any width [B, T], as an array or nested lists: 1 <= T <= n_ctx, each id from 0 to
            n_vocab - 1. (The padding of the vocabulary, n_vocab to n_vocab_padded - 1, has no ids.)
        platform: as in `transformer.forward`; None: that of the devices that hold the arguments.

    Where ids are traced, all logits of a row that holds an id outside the vocabulary are NaN.

    Raises:
        UserError: ids that are not integers, or outside the vocabulary; another rank; no tokens; T above n_ctx.
    """
    tokens_BT, known = _integers("tokens", tokens_BT, "[batch, length]")
    _require_length(tokens_BT.shape[1], config)
    outside_BT = _outside("token id", tokens_BT, known, 0, config.n_vocab - 1, _vocabulary(config))
    logits_BTV = transformer.forward(params, tokens_BT, config, platform)
    if known is not None:
        return logits_BTV
    return jnp.where(outside_BT.any(axis=1)[:, None, None], jnp.nan, logits_BTV)


def prefill(
    weights: DecodeWeights,
    tokens_BT: Any,
    lengths_B: Any,
    config: ModelConfig,
    capacity: int | None = None,
    platform: str | None = None,
) -> tuple[jax.Array, Cache]:
    """Reads the prompts; the logits [B, V] (fp32) of each row's next token, and the cache for `decode_step`.

    Args:
        weights: from `decode_weights`.
        tokens_BT: integers [B, T], T at most `capacity`; a row's prompt stands in front, what follows it is not looked
            at, whatever it is.
        lengths_B: integers [B], the length of each row's prompt: 1 to T.
        capacity: tokens that a row may reach, prompt included (default: n_ctx).
        platform: that the program is compiled for; None: that of the devices that hold the weights.

    Where ids or lengths are traced, a row with a wrong one gives NaN, here and in every later `decode_step`.

    Raises:
        UserError: as `forward`; a length outside 1 to T; a capacity below T or above n_ctx.
    """
    tokens_BT, known_BT = _integers("tokens", tokens_BT, "[batch, length]")
    lengths_B, known_B = _integers("lengths", lengths_B, "[batch]")
    batch, length = tokens_BT.shape
    _require_rows("lengths", lengths_B, batch)
    _require_length(length, config)
    if capacity is not None and not length <= capacity <= config.n_ctx:
        raise UserError(
            f"capacity is {capacity}; expected at least the prompts' {length} positions and at most model.n_ctx "
            f"{config.n_ctx}"
        )
    wrong_B = _outside("length", lengths_B, known_B, 1, length, "the prompts' positions")
    # What follows a prompt is not looked at: any id of the vocabulary takes its place.
    tokens_BT = jnp.where(jnp.arange(length) < lengths_B[:, None], tokens_BT, 0)
    if known_BT is not None and known_B is not None:
        known_BT = np.where(np.arange(length) < known_B[:, None], known_BT, 0)
    else:
        known_BT = None
    outside_BT = _outside("token id", tokens_BT, known_BT, 0, config.n_vocab - 1, _vocabulary(config))
    logits_BV, cache = decode.prefill(
        weights, tokens_BT, lengths_B, config, Local(platform or platform_of(weights)), capacity
    )
    if known_BT is not None:
        return logits_BV, cache
    return _spoil(logits_BV, cache, wrong_B | outside_BT.any(axis=1), config)


def decode_step(
    weights: DecodeWeights, cache: Cache, tokens_B: Any, config: ModelConfig, platform: str | None = None
) -> tuple[jax.Array, Cache]:
    """Gives each row one more token; the logits [B, V] (fp32) of the one after it, and the cache holding it.

    To be jitted with the cache donated, so that it is written in place; where many tokens are to follow, `generate`
    is the faster way.

    Args:
        cache: from `prefill`, with room for one more token in each row.
        tokens_B: integers [B].
        platform: as in `prefill`, and the same.

    Where ids or the cache are traced, a row with an id outside the vocabulary, or without room, gives NaN, here and in
    every later step.

    Raises:
        UserError: as `forward`; a row whose cache is full.
    """
    tokens_B, known_B = _integers("tokens", tokens_B, "[batch]")
    lengths_B, known_lengths_B = _integers("cache.lengths_B", cache.lengths_B, "[batch]")
    _require_rows("tokens", tokens_B, lengths_B.shape[0])
    # The widest layer has a slot for each position, or a band: then only n_ctx is the end.
    slots = max(keys.shape[1] for keys in cache.keys)
    dense = any(band is None for band in transformer.bands(config))
    room = min(slots, config.n_ctx) if dense else config.n_ctx
    full_B = _outside("tokens in a row", lengths_B, known_lengths_B, 0, room - 1, f"a cache that has room for {room}")
    outside_B = _outside("token id", tokens_B, known_B, 0, config.n_vocab - 1, _vocabulary(config))
    logits_BV, cache = decode.decode_step(weights, cache, tokens_B, config, Local(platform or platform_of(weights)))
    if known_B is not None and known_lengths_B is not None:
        return logits_BV, cache
    return _spoil(logits_BV, cache, outside_B | full_B, config)


def _spoil(logits_BV: jax.Array, cache: Cache, wrong_B: jax.Array, config: ModelConfig) -> tuple[jax.Array, Cache]:
    """NaN in these rows' logits; and rows that count as full, so that every later step gives NaN or an error too."""
    lengths_B = jnp.where(wrong_B, config.n_ctx, cache.lengths_B)
    return jnp.where(wrong_B[:, None], jnp.nan, logits_BV), Cache(cache.keys, cache.values, lengths_B)


def _integers(name: str, given: Any, shape: str) -> tuple[jax.Array, np.ndarray | None]:
    """The integers as int32, those beyond it brought to its ends; and as they were given, where their values are known.

    `shape` is what is expected, in words: one dimension for each name in it.
    """
    known: np.ndarray | None = None
    if not isinstance(given, jax.core.Tracer) and getattr(given, "is_fully_addressable", True):
        try:
            known = np.asarray(jax.device_get(given))
        except ValueError:
            raise UserError(f"{name} are rows of different lengths; expected {shape} of integers") from None
    array = given if isinstance(given, jax.Array) else known
    assert array is not None
    if array.size == 0:
        raise UserError(f"{name} are empty (shape {list(array.shape)}); expected {shape}, none of them 0")
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise UserError(f"{name} are of type {array.dtype}; expected integers")
    if array.ndim != shape.count(",") + 1:
        raise UserError(f"{name} have shape {list(array.shape)}; expected {shape}")
    here, there = (np.iinfo(dtype) for dtype in (array.dtype, np.int32))
    if here.min < there.min or here.max > there.max:
        array = array.clip(max(here.min, there.min), min(here.max, there.max))
    return jnp.asarray(array, jnp.int32), known


def _outside(what: str, array: jax.Array, known: np.ndarray | None, lowest: int, highest: int, of: str) -> jax.Array:
    """Where integers are outside lowest .. highest; where they are known, all False, or an error."""
    if known is None:
        return (array < lowest) | (array > highest)
    wrong = np.argwhere((known < lowest) | (known > highest))
    if len(wrong):
        at = tuple(int(i) for i in wrong[0])
        raise UserError(f"{what} {known[at]} at {list(at)} is outside {of}; expected {lowest} to {highest}")
    return jnp.zeros(array.shape, bool)


def _vocabulary(config: ModelConfig) -> str:
    return f"the vocabulary (model.n_vocab {config.n_vocab})"


def _require_length(length: int, config: ModelConfig) -> None:
    if length > config.n_ctx:
        raise UserError(f"tokens are {length} long; the model's context, model.n_ctx, is {config.n_ctx}: shorten them")


def _require_rows(name: str, array_B: jax.Array, batch: int) -> None:
    if array_B.shape[0] != batch:
        raise UserError(f"{name} are for {array_B.shape[0]} rows; expected {batch}, one for each row")
