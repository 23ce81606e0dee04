"""Generation's programs on one device or over a mesh: the weights placed, the prompts read, one token appended.

Rows are split over replica and data; heads, MLP and vocabulary over tensor. What the host reads (tokens, their
log-likelihoods) is gathered to every device, so that each process of a run sees all of it. Each program is compiled
once for each shape of its arguments; callers round these up to a few.

Shapes, of all devices together: P prompts, W hypotheses of each, B = P × W rows, T positions of the prompts, C = 2W
candidates, V = the true vocabulary.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec, Sharding
from jax.typing import ArrayLike

from gpt3_jax.config import ModelConfig
from gpt3_jax.inference.placed import cache_partitions, weight_partitions
from gpt3_jax.model.decode import (
    Cache,
    DecodeWeights,
    Prefix,
    decode_step,
    longer,
    prefill,
    read_prefix,
    slots_of,
)
from gpt3_jax.model.sampling import sample
from gpt3_jax.model.stored import Form
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import batch_shards, platform_of
from gpt3_jax.parallel.rules import batch_partition


@dataclasses.dataclass(frozen=True)
class Place:
    """The model, and the devices that it is on. A static argument of every program."""

    config: ModelConfig
    local: Local
    n_tokens: int
    """Tokens of the tokenizer; a model may have more ids. The others are never generated."""
    mesh: Mesh | None = None
    """None: one device, that of the arguments."""
    form: Form = "compute"
    """How the weights are kept."""

    @property
    def shards(self) -> int:
        """The parts that rows are split into; their number must be divisible by it."""
        return 1 if self.mesh is None else batch_shards(self.mesh)

    def over_devices(self, f: Callable[..., Any], arguments: Any, results: Any) -> Callable[..., Any]:
        """`f` on each device's shards, which these partitions describe."""
        if self.mesh is None:
            return f
        return jax.shard_map(f, mesh=self.mesh, in_specs=arguments, out_specs=results)

    @property
    def rows(self) -> PartitionSpec:
        """How an array with a row for each prompt or hypothesis lies on the mesh."""
        return PartitionSpec() if self.mesh is None else batch_partition(self.mesh)


@flax.struct.dataclass
class Draw:
    """Everything except the logits that a sample depends on."""

    seed: ArrayLike
    """uint32."""
    samples_B: ArrayLike
    temperature: ArrayLike
    top_k: ArrayLike
    top_p: ArrayLike


@flax.struct.dataclass
class Drawn:
    """A token for each row."""

    tokens_B: Any
    logprobs_B: Any
    """Their log-likelihoods under the model itself, whatever the temperature; nats, fp32."""


@flax.struct.dataclass
class Candidates:
    """The likeliest hypotheses of each prompt with one more token, the best first."""

    scores_PC: Any
    """Log-likelihoods of all their tokens; nats, fp32."""
    parents_PC: Any
    """The hypothesis that each continues, 0 to W - 1."""
    tokens_PC: Any


def make_place(
    config: ModelConfig,
    n_tokens: int,
    mesh: Mesh | None,
    weights: DecodeWeights | None = None,
    form: Form = "compute",
) -> Place:
    """The place of these weights; of a mesh of one device, that device alone.

    Args:
        weights: where there is no mesh, what tells the platform.
    """
    if mesh is None or mesh.size == 1:
        platform = platform_of(weights) if mesh is None else Local.of(mesh).platform
        return Place(config, Local(platform), n_tokens, form=form)
    return Place(config, Local.of(mesh), n_tokens, mesh, form)


# -- what prompts share -----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="place")
def begin_prefix(weights: DecodeWeights, tokens_P: ArrayLike, place: Place) -> Prefix:
    """Reads what all prompts of a batch begin with, once: on each batch shard, its heads over tensor."""

    def local(weights: DecodeWeights, tokens_P: jax.Array) -> Prefix:
        return read_prefix(weights, tokens_P, place.config, place.local)

    run = place.over_devices(local, (*_givens(place, 0), PartitionSpec()), _prefixes(place))
    return run(weights, tokens_P)  # type: ignore[no-any-return]


# -- one token a row -----------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("place", "capacity"))
def begin(
    weights: DecodeWeights,
    tokens_BT: ArrayLike,
    lengths_B: ArrayLike,
    draw: Draw,
    place: Place,
    capacity: int,
    prefix: Prefix | None = None,
) -> tuple[Drawn, Cache]:
    """Reads the prompts; the first token of each completion.

    Args:
        tokens_BT, lengths_B, prefix: as `model.decode.prefill`; B is a multiple of `place.shards`.
        capacity: tokens that a row may reach, prompt included.
    """

    def local(
        weights: DecodeWeights, tokens_BT: jax.Array, lengths_B: jax.Array, draw: Draw, prefix: Prefix | None
    ) -> tuple[Drawn, Cache]:
        logits_BV, cache = prefill(weights, tokens_BT, lengths_B, place.config, place.local, capacity, prefix)
        return _drawn(logits_BV, cache, draw, place), cache

    given = (*_givens(place, 2), _draw_partitions(place), None if prefix is None else _prefixes(place))
    run = place.over_devices(local, given, (PartitionSpec(), _caches(place)))
    return run(weights, tokens_BT, lengths_B, draw, prefix)  # type: ignore[no-any-return]


@functools.partial(jax.jit, static_argnames="place", donate_argnames="cache")
def advance(weights: DecodeWeights, cache: Cache, tokens_B: ArrayLike, draw: Draw, place: Place) -> tuple[Drawn, Cache]:
    """Appends a token to each row; the one after it. The cache is donated."""

    def local(weights: DecodeWeights, cache: Cache, tokens_B: jax.Array, draw: Draw) -> tuple[Drawn, Cache]:
        logits_BV, cache = decode_step(weights, cache, tokens_B, place.config, place.local)
        return _drawn(logits_BV, cache, draw, place), cache

    weights_spec, rows = _givens(place, 1)
    given = (weights_spec, _caches(place), rows, _draw_partitions(place))
    run = place.over_devices(local, given, (PartitionSpec(), _caches(place)))
    return run(weights, cache, tokens_B, draw)  # type: ignore[no-any-return]


def grow(cache: Cache, config: ModelConfig, capacity: int) -> Cache:
    """The cache with room for rows of so many tokens, more than it had, layer by layer: the old one's are deleted."""

    def grown(x_NSK: jax.Array, slots: int) -> jax.Array:
        if x_NSK.shape[1] == slots:
            return x_NSK
        made = _longer(x_NSK, slots=slots, sharding=x_NSK.sharding)
        jax.block_until_ready(made)
        x_NSK.delete()
        return made

    slots = slots_of(config, capacity)
    keys, values = (tuple(map(grown, layers, slots)) for layers in (cache.keys, cache.values))
    return Cache(keys, values, cache.lengths_B)


@functools.partial(jax.jit, static_argnames=("slots", "sharding"))
def _longer(x_NSK: jax.Array, slots: int, sharding: Sharding) -> jax.Array:
    return lax.with_sharding_constraint(longer(x_NSK, slots), sharding)


def _drawn(logits_BV: jax.Array, cache: Cache, draw: Draw, place: Place) -> Drawn:
    key = jax.random.key(draw.seed)
    settings = draw.temperature, draw.top_k, draw.top_p
    tokens_B = sample(logits_BV[:, : place.n_tokens], key, draw.samples_B, cache.lengths_B, *settings)  # type: ignore[arg-type]
    logprobs_B = _log_softmax(logits_BV, tokens_B[:, None])[:, 0]
    return Drawn(place.local.gather_rows(tokens_B), place.local.gather_rows(logprobs_B))


def _log_softmax(logits_BV: jax.Array, tokens_BK: jax.Array) -> jax.Array:
    """Log-likelihoods [B, K] of these tokens."""
    total_B = jax.nn.logsumexp(logits_BV, axis=-1)
    return jnp.take_along_axis(logits_BV, tokens_BK, axis=1) - total_B[:, None]


# -- beams ---------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("place", "capacity", "width"))
def begin_beams(
    weights: DecodeWeights,
    tokens_PT: ArrayLike,
    lengths_P: ArrayLike,
    place: Place,
    capacity: int,
    width: int,
    prefix: Prefix | None = None,
) -> tuple[Candidates, Cache]:
    """Reads the prompts, each once; their first candidates, and a cache with `width` rows for each prompt.

    Args:
        prefix: as `begin`.
    """

    def local(
        weights: DecodeWeights, tokens_PT: jax.Array, lengths_P: jax.Array, prefix: Prefix | None
    ) -> tuple[Candidates, Cache]:
        logits_PV, cache = prefill(weights, tokens_PT, lengths_P, place.config, place.local, capacity, prefix)
        prompts = lengths_P.shape[0]
        parents_B = jnp.repeat(jnp.arange(prompts), width)
        return _candidates(logits_PV[:, None], jnp.zeros((prompts, 1)), width, place), _rows_of(cache, parents_B)

    given = (*_givens(place, 2), None if prefix is None else _prefixes(place))
    run = place.over_devices(local, given, (PartitionSpec(), _caches(place)))
    return run(weights, tokens_PT, lengths_P, prefix)  # type: ignore[no-any-return]


@functools.partial(jax.jit, static_argnames="place", donate_argnames="cache")
def advance_beams(
    weights: DecodeWeights,
    cache: Cache,
    scores_PW: ArrayLike,
    parents_PW: ArrayLike,
    tokens_PW: ArrayLike,
    place: Place,
) -> tuple[Candidates, Cache]:
    """Goes on with these hypotheses: each is hypothesis `parents_PW` of its prompt with one more token. The candidates
    after it. The cache is donated.

    Args:
        scores_PW: their log-likelihoods; -inf for one that is none.
    """

    def local(
        weights: DecodeWeights, cache: Cache, scores_PW: jax.Array, parents_PW: jax.Array, tokens_PW: jax.Array
    ) -> tuple[Candidates, Cache]:
        prompts, width = parents_PW.shape
        first_P1 = (jnp.arange(prompts) * width)[:, None]
        cache = _rows_of(cache, (first_P1 + parents_PW).reshape(-1))
        logits_BV, cache = decode_step(weights, cache, tokens_PW.reshape(-1), place.config, place.local)
        return _candidates(logits_BV.reshape(prompts, width, -1), scores_PW, width, place), cache

    weights_spec, rows = _givens(place, 1)
    run = place.over_devices(local, (weights_spec, _caches(place), rows, rows, rows), (PartitionSpec(), _caches(place)))
    return run(weights, cache, scores_PW, parents_PW, tokens_PW)  # type: ignore[no-any-return]


def _candidates(logits_PWV: jax.Array, scores_PW: jax.Array, width: int, place: Place) -> Candidates:
    """The best 2W: with end-of-text as the last token of W of them at most, as many can go on."""
    prompts, hypotheses, _ = logits_PWV.shape
    logprobs_PWV = jax.nn.log_softmax(logits_PWV, axis=-1)[..., : place.n_tokens]
    each = min(2 * width, place.n_tokens)
    # First the best of each hypothesis: no sort runs over all of them.
    best_PWK, tokens_PWK = lax.top_k(logprobs_PWV, each)
    totals_PX = (best_PWK + scores_PW[..., None]).reshape(prompts, -1)
    totals_PC, found_PC = lax.top_k(totals_PX, min(2 * width, hypotheses * each))
    tokens_PC = jnp.take_along_axis(tokens_PWK.reshape(prompts, -1), found_PC, axis=1)
    gather = place.local.gather_rows
    return Candidates(gather(totals_PC), gather(found_PC // each), gather(tokens_PC))


def _rows_of(cache: Cache, rows_B: jax.Array) -> Cache:
    """The cache whose row i is this one's row `rows_B[i]`."""
    batch = cache.lengths_B.shape[0]

    def take(x_NSK: jax.Array) -> jax.Array:
        by_row = x_NSK.reshape(batch, -1, *x_NSK.shape[1:])
        return by_row.at[rows_B].get(mode="promise_in_bounds").reshape(-1, *x_NSK.shape[1:])

    return Cache(tuple(map(take, cache.keys)), tuple(map(take, cache.values)), cache.lengths_B[rows_B])


# -- partitions of the programs' arguments -------------------------------------------------------------------------


def _givens(place: Place, rows: int) -> tuple[Any, ...]:
    """Of the weights, and of so many arrays of rows; nothing without a mesh."""
    if place.mesh is None:
        return (None,) * (1 + rows)
    return weight_partitions(place.config, place.mesh, place.form), *(place.rows,) * rows


def _caches(place: Place) -> Cache | None:
    return None if place.mesh is None else cache_partitions(place.config, place.mesh)


def _prefixes(place: Place) -> Prefix | None:
    """Heads over tensor; the same on every batch shard."""
    if place.mesh is None:
        return None
    layers: Any = (PartitionSpec(None, place.local.tensor),) * place.config.n_layers
    return Prefix(layers, layers)


def _draw_partitions(place: Place) -> Draw:
    everywhere: Any = PartitionSpec()
    rows: Any = place.rows
    return Draw(everywhere, rows, everywhere, everywhere, everywhere)
