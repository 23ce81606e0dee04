"""Completes prompts with a trained model: as texts, as a stream, or as answers with their log-likelihoods."""

from __future__ import annotations

import dataclasses
import numbers
import os
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3_jax.cluster.agreement import to_host
from gpt3_jax.cluster.log import log
from gpt3_jax.config import ModelConfig, ParallelConfig
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.environment import start_devices
from gpt3_jax.errors import UserError, require_type
from gpt3_jax.generation.beams import BeamSearch, empty_places
from gpt3_jax.generation.completion import Completed, Piece, Row
from gpt3_jax.generation.decoding import AS_IT_IS, Beam, Decoding, Greedy, Sampling, require_seed
from gpt3_jax.generation.stops import StopStrings
from gpt3_jax.inference import generate as programs
from gpt3_jax.inference import placed
from gpt3_jax.inference.generate import Candidates, Draw, Drawn
from gpt3_jax.inference.lengths import cache_length, padded_length, shared_length
from gpt3_jax.interop.loading import load_model
from gpt3_jax.model import cpu
from gpt3_jax.model.decode import Prefix
from gpt3_jax.model.params import Params
from gpt3_jax.model.stored import Form, Stored
from gpt3_jax.parallel.mesh import make_mesh

Weights = Literal["float32", "bfloat16", "int8"]
"""float32, bfloat16: the weights, and arithmetic, in this dtype in place of `model.dtype`; int8: the matrices in int8
with a scale for each output channel, arithmetic in `model.dtype`."""
_ROWS = 16
"""Maximum number of rows that a device, or a tensor group of devices, computes at once: completions, or hypotheses of
beam searches. More are computed in turn, to limit the memory of their caches.

It is fixed, whatever the model and the memory, and this costs throughput: each token reads all weights, for 16 rows as
for a hundred, so where caches leave room, most of an accelerator is idle. Where the caches of 16 rows do not fit, more
tensor-parallel devices or fewer tokens are needed. ``gpt3-jax plan --for generate --rows N`` says what another number
would need and take."""
_SHORTEST = 32
"""Prompts and caches are padded to one of `LENGTHS` of at least this, so that few shapes are compiled."""


class Generator:
    """A loaded model that completes prompts, on one device or over a mesh."""

    def __init__(
        self,
        params: Params[Any],
        config: ModelConfig,
        tokenizer: Tokenizer,
        mesh: Mesh | None = None,
        *,
        form: Form = "compute",
        consume: bool = False,
    ) -> None:
        """Casts the weights and places them; `params` may be deleted afterwards.

        Args:
            params: fp32, in the compute dtype or quantised, in any place: ZeRO's shards on this mesh, on one device, in
                the host's memory as numpy arrays.
            mesh: rows are split over replica and data; weights and caches over tensor. None: the one device that holds
                `params`. In a run of several processes each must make the same calls.
            form: how the weights are kept: int8 halves the memory of bf16 weights and changes results (`model.stored`).
            consume: whether to delete most of `params` on the way, so that they do not lie there beside the weights.

        Raises:
            UserError: the tokenizer has more tokens than the model; a mesh whose tensor axis does not divide it;
                quantised weights with `form` compute.
        """
        if tokenizer.n_vocab > config.n_vocab:
            raise UserError(
                f"tokenizer {tokenizer.name!r} has {tokenizer.n_vocab} tokens but the model only {config.n_vocab}; "
                "it was trained with another one"
            )
        if form == "compute" and isinstance(params.token_embedding, Stored):
            raise UserError("form is 'compute' but the weights are quantised; expected 'int8' for them")
        start_devices()
        self.config = config
        self.tokenizer = tokenizer
        self._prefix: tuple[list[int], Prefix] | None = None
        self._weights = placed.place_weights(params, config, mesh, form, consume=consume)
        self._place = programs.make_place(config, tokenizer.n_vocab, mesh, self._weights, form)

    def give_up(self, where: Params[NamedSharding]) -> Params:
        """The parameters that the weights were made of, in the compute dtype, placed so. The weights are deleted as
        they are moved: the generator is not to be used afterwards.

        Only with `form` compute.
        """
        weights, self._prefix = self._weights, None
        del self._weights
        return placed.take_params(weights, self.config, where)

    @classmethod
    def load(
        cls,
        checkpoint: str | os.PathLike[str],
        parallel: ParallelConfig | None = None,
        weights: Weights | None = None,
    ) -> Generator:
        """Loads a run's or a Hugging Face folder. Raises the errors of `load_model` and `make_mesh`.

        A device holds its shards of the weights as they are kept; while they are loaded, those of one matrix of all
        layers more, in fp32.

        Args:
            parallel: a mesh over all devices; None: the first device alone.
            weights: how the weights are kept. A message says how far they are from the checkpoint's.
        """
        if weights not in (None, *get_args(Weights)):
            raise UserError(f"weights is {weights!r}; expected {', '.join(get_args(Weights))}, or none")
        mesh = None if parallel is None else make_mesh(parallel)
        form: Form = "int8" if weights == "int8" else "compute"
        loaded = load_model(
            checkpoint,
            mesh=mesh,
            parallel=parallel or ParallelConfig(),
            weights=form,
            dtype=None if weights == "int8" else weights,
            with_rounding=weights is not None,
        )
        if weights is not None:
            log.info(f"weights in {weights}: {loaded.rounding or 'as the checkpoint has them'}")
        return cls(loaded.params, loaded.config, loaded.tokenizer, mesh, form=form, consume=True)

    def stream(
        self,
        prompts: Sequence[str],
        *,
        max_tokens: int = 128,
        sampling: Sampling = AS_IT_IS,
        samples: int = 1,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[Piece]:
        """Completes each prompt `samples` times. Yields one piece per token and completion, as they are generated.

        An empty prompt is the beginning of a document. A completion ends at end-of-text or in front of a stop string,
        which are not part of it, after `max_tokens`, or when prompt and completion fill the context. Sample n of a
        prompt is a function of the prompt, the sampling settings, the seed and n, up to rounding. That depends on the
        mesh, and on the prompts beside it: on their number and lengths, and on whether a prefix that all share is read
        apart. Where two tokens are almost equally likely, rounding may choose between them, most of all in bf16.

        Raises:
            UserError: a prompt is not a text or leaves no room in the context, a stop string is empty, or a number is
                out of range. Raised before anything is computed.
        """
        _require_positive("max_tokens", max_tokens)
        _require_positive("samples", samples)
        require_seed(seed)
        stops = StopStrings(stop)
        rows = [
            self._row(prompt, sample, ids, max_tokens, stops)
            for prompt, ids in enumerate(self._fitting(self.encode(prompts)))
            for sample in range(samples)
        ]

        at_once = max(1, min(len(rows), self._rows_at_once))
        groups = _batched(rows, at_once)
        return (piece for group in groups for _, piece in self._grow(group, sampling, seed, at_once))

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        stop: str | Sequence[str],
        max_tokens: int,
        decoding: Decoding,
        samples: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, Completed]]:
        """Completes each prompt once. Yields its index and completion, as they are ready: prompts of similar length
        are computed together, the shortest first.

        Args:
            prompts: token ids. An empty prompt is the beginning of a document.
            stop: texts in front of which a completion ends.
            samples: the number of each prompt's sample, in place of `Sample.number`; for `Sample` only.

        Raises:
            UserError: as `stream`.
        """
        _require_positive("max_tokens", max_tokens)
        stops = StopStrings(stop)
        encoded = self._fitting([list(ids) or [self.tokenizer.eot] for ids in prompts])
        order = sorted(range(len(encoded)), key=lambda i: len(encoded[i]))
        if isinstance(decoding, Beam):
            return self._search_all(encoded, order, stops, max_tokens, decoding)
        sampling = Sampling(temperature=0) if isinstance(decoding, Greedy) else decoding
        seed, number = (0, 0) if isinstance(decoding, Greedy) else (decoding.seed, decoding.number)
        rows = [self._row(i, samples[i] if samples else number, encoded[i], max_tokens, stops) for i in order]
        at_once = max(1, min(len(rows), self._rows_at_once))
        return (
            (row.prompt, row.completed())
            for group in _batched(rows, at_once)
            for row, piece in self._grow(group, sampling, seed, at_once)
            if piece.finish
        )

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids of each prompt; of an empty one, end-of-text. Raises UserError for one that is no text."""
        for number, prompt in enumerate(prompts, start=1):
            if not isinstance(prompt, str):
                raise UserError(
                    f"prompt {number} is of type {type(prompt).__name__}; expected text (`gpt3_jax.model.prefill` and "
                    "`decode_step` take token ids)"
                )
        return [self.tokenizer.encode(prompt) or [self.tokenizer.eot] for prompt in prompts]

    def _fitting(self, encoded: list[list[int]]) -> list[list[int]]:
        n_ctx = self.config.n_ctx
        for number, ids in enumerate(encoded, start=1):
            if len(ids) >= n_ctx:
                raise UserError(
                    f"prompt {number} is {len(ids)} tokens long; the model's context is {n_ctx} tokens and has to hold "
                    f"the completion too: shorten it to {n_ctx - 1} at most"
                )
        return encoded

    # -- one token a row -------------------------------------------------------------------------------------------

    def _row(self, prompt: int, sample: int, ids: list[int], max_tokens: int, stops: StopStrings) -> Row:
        return Row(self.tokenizer, prompt, sample, ids, max_tokens, self.config.n_ctx, stops)

    def _grow(self, rows: list[Row], sampling: Sampling, seed: int, at_once: int) -> Iterator[tuple[Row, Piece]]:
        """Completes the rows together; each piece with its row.

        Args:
            at_once: rows of the call's other groups, which are no fewer.
        """
        self._order_for(at_once)
        padded = self._padded(rows)
        tokens_BT, lengths_B, capacities, prefix = self._batch(
            [row.prompt_ids for row in padded], [row.limit for row in padded]
        )
        capacity = capacities.after(1)
        draw = Draw(
            np.uint32(seed),
            np.array([row.stream for row in padded], np.int32),
            np.float32(sampling.temperature),
            np.int32(sampling.top_k),
            np.float32(sampling.top_p),
        )
        n_tokens = max(row.limit for row in rows)
        drawn, cache = programs.begin(self._weights, tokens_BT, lengths_B, draw, self._place, capacity, prefix)
        for n in range(n_tokens):
            found: Drawn = drawn
            if n + 1 < n_tokens:
                # The next token is dispatched before this one is read, so the device never waits for the reader.
                if capacities.after(n + 1) > capacity:
                    capacity = capacities.after(n + 1)
                    cache = programs.grow(cache, self.config, capacity)
                drawn, cache = programs.advance(self._weights, cache, found.tokens_B, draw, self._place)
            ids, logprobs = to_host((found.tokens_B, found.logprobs_B))
            for row, token, logprob in zip(rows, ids, logprobs, strict=False):
                if not row.finished:
                    yield row, row.add(int(token), float(logprob))
            if all(row.finished for row in rows):
                return

    # -- beams -----------------------------------------------------------------------------------------------------

    def _search_all(
        self, encoded: list[list[int]], order: list[int], stops: StopStrings, max_tokens: int, beam: Beam
    ) -> Iterator[tuple[int, Completed]]:
        at_once = max(1, min(len(order), max(1, _ROWS // beam.width) * self._place.shards))
        for group in _batched(order, at_once):
            self._order_for(at_once * beam.width)
            searches = [
                BeamSearch(beam, self.tokenizer, stops, len(encoded[i]), max_tokens, self.config.n_ctx) for i in group
            ]
            for place, search in self._search([encoded[i] for i in group], searches, beam.width):
                yield group[place], search.completed()

    def _search(
        self, prompts: list[list[int]], searches: list[BeamSearch], width: int
    ) -> Iterator[tuple[int, BeamSearch]]:
        """Runs the searches together; each with its place when it is finished."""
        limits = [search.limit for search in searches]
        tokens_PT, lengths_P, capacities, prefix = self._batch(self._padded(prompts), limits)
        capacity, steps = capacities.after(1), 0
        found: Candidates
        found, cache = programs.begin_beams(self._weights, tokens_PT, lengths_P, self._place, capacity, width, prefix)
        left = dict(enumerate(searches))
        while True:
            scores_PC, parents_PC, tokens_PC = (
                array.tolist() for array in to_host((found.scores_PC, found.parents_PC, found.tokens_PC))
            )
            for place, search in list(left.items()):
                search.offer(scores_PC[place], parents_PC[place], tokens_PC[place])
                if search.finished:
                    yield place, left.pop(place)
            if not left:
                return
            # A place without a prompt holds no hypothesis, nor does that of a finished search.
            places = [search.places() for search in searches] + [empty_places(width)] * (len(lengths_P) - len(searches))
            scores, parents, tokens = (list(column) for column in zip(*places, strict=True))
            steps += 1
            if capacities.after(steps) > capacity:
                capacity = capacities.after(steps)
                cache = programs.grow(cache, self.config, capacity)
            found, cache = programs.advance_beams(
                self._weights,
                cache,
                np.array(scores, np.float32),
                np.array(parents, np.int32),
                np.array(tokens, np.int32),
                self._place,
            )

    # -- batches ---------------------------------------------------------------------------------------------------

    @property
    def _rows_at_once(self) -> int:
        return _ROWS * self._place.shards

    def _padded(self, rows: list[Any]) -> list[Any]:
        """As many for each shard, a power of two. What is past the end repeats the first one and is ignored."""
        shards = self._place.shards
        return rows + [rows[0]] * (shards * _power(-(-len(rows) // shards)) - len(rows))

    def _batch(
        self, prompts: list[list[int]], limits: list[int]
    ) -> tuple[np.ndarray, np.ndarray, _Capacities, Prefix | None]:
        """Tokens [B, T] and lengths [B] of the prompts, the capacities of their cache; and what all of them begin with,
        which tokens and lengths then leave out."""
        needed = max(len(ids) + limit for ids, limit in zip(prompts, limits, strict=False))
        capacity = padded_length(needed, _SHORTEST, self.config.n_ctx)
        shared = self._shared(prompts)
        lengths_B = np.array([len(ids) - shared for ids in prompts], np.int32)
        longest = padded_length(int(lengths_B.max()), 1 if shared else _SHORTEST, capacity - shared)
        tokens_BT = np.zeros((len(prompts), longest), np.int32)
        for i, ids in enumerate(prompts):
            tokens_BT[i, : len(ids) - shared] = ids[shared:]
        grows = cpu.grows_caches(self._place.local.platform)
        capacities = _Capacities(max(map(len, prompts)), shared + longest if grows else capacity, capacity)
        return tokens_BT, lengths_B, capacities, self._prefix_of(prompts[0][:shared])

    def _shared(self, prompts: list[list[int]]) -> int:
        """How many tokens of what all prompts begin with are read once, without the last of the shortest one
        (`shared_length`). 0 where a device has one row: it would read as much in two programs."""
        if len(prompts) == self._place.shards:
            return 0
        first, last = min(prompts), max(prompts)  # in lexical order: what these two share, all do
        most = min(map(len, prompts)) - 1
        common = next((i for i in range(most) if first[i] != last[i]), most)
        return shared_length(common, max(map(len, prompts)))

    def _order_for(self, rows: int) -> None:
        """Has the weights in the order that so many rows on one device are best computed from. Of a call's last group,
        which may be smaller, they keep the order of its others: turning them takes as long as it saves in 30 tokens."""
        if self._place.mesh is None and self._place.form == "compute":
            self._weights = placed.order_for(self._weights, self.config, self._place.local.platform, rows)

    def _prefix_of(self, ids: Sequence[int]) -> Prefix | None:
        """Its keys and values; the last one is kept for the batches that follow."""
        if not ids:
            return None
        if self._prefix is None or self._prefix[0] != list(ids):
            self._prefix = None  # the device does not hold two
            read = programs.begin_prefix(self._weights, np.array(ids, np.int32), self._place)
            self._prefix = list(ids), read
        return self._prefix[1]


@dataclasses.dataclass(frozen=True)
class _Capacities:
    """Of the cache of a batch, which on a CPU grows with its rows."""

    prompt: int
    """Tokens of the longest prompt."""
    read: int
    """Tokens that it has room for at first: those that are read, padding included, or all of them."""
    most: int

    def after(self, steps: int) -> int:
        """The capacity for so many tokens more than the prompt."""
        return cache_length(max(self.prompt + steps, self.read), self.most)


def generate(
    checkpoint: str | os.PathLike[str],
    prompts: str | Sequence[str],
    *,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    weights: Weights | None = None,
) -> list[str]:
    """Completes prompts with a run's newest checkpoint. Returns all samples of the first prompt, then of the second, …

    Args:
        checkpoint: a run's folder (``train.run_dir``), or a folder in Hugging Face's format.
        prompts: one text or several. Completions do not repeat them.
        max_tokens: maximum tokens of a completion. It also ends at end-of-text and when the context is full.
        temperature, top_k, top_p: see `Sampling`.
        samples: number of completions of each prompt.
        seed: equal seeds give equal texts, for the same prompts on the same devices (`Generator.stream`).
        stop: texts, or one, in front of which a completion ends; they are not part of it.
        weights: float32, bfloat16 or int8, in place of the model's dtype: see `Weights`.

    Raises:
        UserError: there is no checkpoint, a prompt is longer than the context, a stop string is empty, or a number is
            out of range.
        RunError: no checkpoint can be read.
    """
    require_type("prompts", prompts, (str, Sequence), "a text or a list of texts")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    sampling = Sampling(temperature, top_k, top_p)
    generator = Generator.load(checkpoint, weights=weights)
    texts = [""] * (len(prompts) * samples)
    pieces = generator.stream(prompts, max_tokens=max_tokens, sampling=sampling, samples=samples, seed=seed, stop=stop)
    for piece in pieces:
        texts[piece.prompt * samples + piece.sample] += piece.text
    return texts


def _require_positive(name: str, value: int) -> None:
    require_type(name, value, numbers.Integral, "a whole number")
    if value < 1:
        raise UserError(f"{name} is {value}; expected at least 1")


def _batched(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _power(n: int) -> int:
    """The next power of two."""
    return 1 << (n - 1).bit_length()
