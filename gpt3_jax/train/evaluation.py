"""Loss on held-out data."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3_jax.cluster.agreement import from_lead, is_lead
from gpt3_jax.config import Config
from gpt3_jax.data.loader import Batch, Loader
from gpt3_jax.data.stream import HeldOut
from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.parallel.mesh import batch_shards
from gpt3_jax.parallel.rules import batch_partition
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_eval_step


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Loss of a model on held-out data."""

    loss: float
    """Mean over tokens, in nats."""
    bits_per_byte: float
    """The loss in bits per byte of the text that the tokens encode; comparable between tokenizers."""
    tokens: int


class _Padded:
    """A held-out stream padded beyond its end with sequences of -1, which the loss ignores."""

    def __init__(self, stream: HeldOut, count: int) -> None:
        self.n_ctx = stream.n_ctx
        self._stream, self._count = stream, count

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        rows = np.full((len(indices), self.n_ctx + 1), -1, np.int32)
        real = indices < self._count
        rows[real] = self._stream.sequences(indices[real])
        return rows


class Evaluator:
    """Evaluates on the first `train.eval_sequences` sequences of a held-out stream (0: all), each token once."""

    def __init__(self, config: Config, mesh: Mesh, stream: HeldOut, tokenizer: Tokenizer, batch: int) -> None:
        """`batch` is the largest number of sequences that a training step processes at once."""
        limit = config.train.eval_sequences or stream.n_sequences
        self._count = min(limit, stream.n_sequences)
        shards = batch_shards(mesh)
        self._batch = min(batch, -(-self._count // shards) * shards)
        sharding = NamedSharding(mesh, batch_partition(mesh))
        self._loader = Loader(_Padded(stream, self._count), sharding, config.data.prefetch)
        rows = jax.ShapeDtypeStruct((self._batch, stream.n_ctx + 1), np.int32, sharding=sharding)
        # Compiled here, because nothing may compile once training runs.
        self._step = make_eval_step(config, mesh).lower(abstract_state(config, mesh).params, rows).compile()
        # One process counts for all: the others read only the rows of their devices.
        self._bytes = int(from_lead(str(self._count_bytes(stream, tokenizer)) if is_lead() else ""))
        self._tokens = self._count * stream.n_ctx

    def _count_bytes(self, stream: HeldOut, tokenizer: Tokenizer) -> int:
        """Bytes of text in the predicted tokens."""
        return sum(
            tokenizer.token_bytes(stream.sequences(np.arange(first, min(first + 64, self._count)))[:, 1:].ravel())
            for first in range(0, self._count, 64)
        )

    def __call__(self, params: Any) -> Evaluation:
        plan = (Batch(first, self._batch) for first in range(0, self._count, self._batch))
        sums = [self._step(params, rows) for _, rows in self._loader.batches(plan)]
        nats = math.fsum(float(value) for value in jax.device_get(sums))
        per_byte = nats / math.log(2) / self._bytes if self._bytes else math.nan
        return Evaluation(nats / self._tokens, per_byte, self._tokens)
