"""Log-likelihoods of token ids, on any mesh that trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3_jax.cluster.agreement import to_host
from gpt3_jax.config import MemoryConfig, ModelConfig, ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.evals.batches import Batch, Ids, arrange
from gpt3_jax.inference.score import make_read_prefix, make_score
from gpt3_jax.model.params import Params, param_table
from gpt3_jax.model.scoring import Past, Tree
from gpt3_jax.model.stored import Stored
from gpt3_jax.parallel.mesh import TENSOR, batch_shards, make_mesh, mesh_platform
from gpt3_jax.parallel.rules import batch_partition, shardings
from gpt3_jax.parallel.zero import parameter_partitions

BATCH_TOKENS = {"cpu": 4096}
"""Tokens of a batch on one device, padding included, by platform."""
_BATCH_TOKENS = 16384
_SHAPE_BATCHES = {"cpu": 1}
"""Batches' worth of padding that another shape of rows must save, by platform: a program compiles in the time of about
one batch of gpt3-small on two cores, and of many on an accelerator (by arithmetic; measured on a CPU only)."""
_SHAPE_BATCHES_OF_OTHERS = 64
_KERNEL_BLOCK = {"tpu": 128}
"""Lengths that the platform's attention kernel takes are multiples of it."""


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """A continuation's log-likelihood, token by token."""

    token_logprobs: tuple[float, ...]
    """Natural logarithms."""
    token_greedy: tuple[bool, ...]
    """Whether a token is the likeliest at its place."""

    @property
    def logprob(self) -> float:
        """Summed over the tokens."""
        return sum(self.token_logprobs)

    @property
    def tokens(self) -> int:
        return len(self.token_logprobs)

    @property
    def greedy(self) -> bool:
        """Whether every token is the likeliest at its place."""
        return all(self.token_greedy)


class Scorer:
    """A model that gives log-likelihoods of continuations."""

    def __init__(
        self,
        params: Params,
        model: ModelConfig,
        mesh: Mesh | None = None,
        parallel: ParallelConfig | None = None,
        memory: MemoryConfig | None = None,
        batch_tokens: int | None = None,
    ) -> None:
        """Places the parameters, fp32, on the mesh as the stage keeps them; where they lie so already, nothing moves.

        Args:
            mesh: of training; None: the device that JAX takes first.
            parallel: its ZeRO stage and reduce dtype hold; its axes are the mesh's.
            batch_tokens: tokens of a batch on one device, padding included (default: 4,096 on a CPU, else 16,384).

        Raises:
            UserError: a dimension that the mesh's axes do not divide; weights in int8.
        """
        if mesh is None:
            mesh = make_mesh(ParallelConfig(data=1), [next(iter(_devices(params)))])
            parallel = ParallelConfig(data=1, stage=0)
        self.model, self.mesh = model, mesh
        parallel, memory = parallel or ParallelConfig(), memory or MemoryConfig()
        self.shardings = shardings(parameter_partitions(param_table(model), mesh, parallel.stage), mesh)
        self.use(params)
        self._score = make_score(model, mesh, parallel, memory)
        self._read_prefix = make_read_prefix(model, mesh, parallel, memory)
        self._rows = NamedSharding(mesh, batch_partition(mesh))
        platform = mesh_platform(mesh)
        self._batch_tokens = batch_tokens or BATCH_TOKENS.get(platform, _BATCH_TOKENS)
        self._shape_tokens = _SHAPE_BATCHES.get(platform, _SHAPE_BATCHES_OF_OTHERS) * self._batch_tokens
        self._kernel_block = _KERNEL_BLOCK.get(platform, 1)

    def use(self, params: Params) -> None:
        """Takes other parameters of the same model from now on. What was compiled stays.

        Raises:
            UserError: weights in int8.
        """
        if isinstance(params.token_embedding, Stored):
            raise UserError(
                "the weights are in int8, which only generation reads; expected float32 or the compute dtype: load the "
                'model with weights "float32" or "compute"'
            )
        self._params: Params = jax.device_put(params, self.shardings)
        self._past: tuple[Ids, Past] | None = None

    def release(self) -> Params:
        """Lets go of the parameters and of what was made from them, until `use`. Returns the parameters."""
        params = self._params
        del self._params
        self._past = None
        return params

    @property
    def params(self) -> Params:
        """As they are placed."""
        return self._params

    def score(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
        """The likelihood of each request's continuation; a request is (context ids, continuation ids).

        Raises:
            UserError: a request without a context or a continuation, with an id outside the vocabulary, or longer than
                the model's context.
        """
        found: dict[int, Likelihood] = dict(self.stream(requests))
        return [found[i] for i in range(len(requests))]

    def stream(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, Likelihood]]:
        """As `score`: pairs of a request's index and its likelihood, as soon as they are known."""
        checked = [self._checked(i, *request) for i, request in enumerate(requests)]
        late: tuple[Batch, tuple[jax.Array, jax.Array]] | None = None
        for batch in self.arranged(checked):
            # One batch is read while the next is computed.
            now = batch, self._dispatch(batch)
            if late is not None:
                yield from _read(*late)
            late = now
        if late is not None:
            yield from _read(*late)

    def arranged(self, requests: Sequence[tuple[Ids, Ids]]) -> Iterator[Batch]:
        """The batches that are computed for these requests."""
        shards = batch_shards(self.mesh)
        return arrange(
            requests,
            self.model.n_ctx,
            self._batch_tokens,
            shards,
            self.mesh.shape[TENSOR],
            self._kernel_block,
            self._shape_tokens * shards,
        )

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch on all devices, padding included."""
        return self._batch_tokens * batch_shards(self.mesh)

    def _dispatch(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
        arrays = (batch.tokens_BS, batch.lengths_B, batch.at_BN, batch.labels_BN)
        # Not `device_put`, which compares the arrays of all processes, and waits for them, each time.
        tokens, lengths, at, labels = (
            jax.make_array_from_callback(array.shape, self._rows, array.__getitem__) for array in arrays
        )
        tree = Tree(tokens, lengths, at, labels, trunk=batch.trunk, branches=batch.branches)
        result: tuple[jax.Array, jax.Array] = self._score(self._params, tree, self._prefix(batch.prefix))
        return result

    def _prefix(self, prefix: Ids) -> Past | None:
        if not prefix:
            return None
        if self._past is None or self._past[0] != prefix:
            self._past = None  # freed before the next one is made
            self._past = prefix, self._read_prefix(self._params, jnp.asarray(prefix, jnp.int32))
        return self._past[1]

    def _checked(self, i: int, context: Sequence[int], continuation: Sequence[int]) -> tuple[Ids, Ids]:
        model = self.model
        for what, ids in (("context", context), ("continuation", continuation)):
            if not len(ids):
                raise UserError(f"the {what} of request {i} has no tokens; expected at least one (end-of-text)")
            array = np.asarray(ids)
            if not np.issubdtype(array.dtype, np.integer):
                raise UserError(f"the {what} of request {i} has ids of type {array.dtype}; expected integers")
            if array.min() < 0 or array.max() >= model.n_vocab:
                wrong = array[(array < 0) | (array >= model.n_vocab)][0]
                raise UserError(
                    f"the {what} of request {i} has token id {wrong}; expected 0 to {model.n_vocab - 1}, the model's "
                    "vocabulary"
                )
        if len(context) + len(continuation) - 1 > model.n_ctx:
            raise UserError(
                f"request {i} has {len(context)} + {len(continuation)} tokens; the model's context, n_ctx, is "
                f"{model.n_ctx}, and all but the last have to fit"
            )
        return tuple(int(t) for t in context), tuple(int(t) for t in continuation)


def _read(batch: Batch, result: tuple[jax.Array, jax.Array]) -> Iterator[tuple[int, Likelihood]]:
    logprobs_BN, greedy_BN = to_host(result)
    for b, found in enumerate(batch.places):
        for request, first, end in found:
            logprobs, greedy = logprobs_BN[b, first:end].tolist(), greedy_BN[b, first:end].tolist()
            yield request, Likelihood(tuple(logprobs), tuple(greedy))


def _devices(params: Params) -> set[jax.Device]:
    for leaf in jax.tree.leaves(params):
        if isinstance(leaf, jax.Array):
            return leaf.devices()
    return {jax.devices()[0]}


def score(
    params: Params, model: ModelConfig, requests: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[Likelihood]:
    """Log-likelihoods of continuations on one device.

    Args:
        requests: (context ids, continuation ids) each; without its last token it must fit n_ctx.

    Raises:
        UserError: as `Scorer.score`.
    """
    return Scorer(params, model).score(requests)
