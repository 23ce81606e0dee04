"""A model that scores and generates, with its weights held once.

Scoring reads them as training keeps them: stacked over the layers, sharded as the ZeRO stage has it. Generation reads
them layer by layer, whole but for the tensor axis. Between the two they are moved, one parameter at a time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gpt3_jax.data.tokenizer import Tokenizer
from gpt3_jax.errors import RunError
from gpt3_jax.evals.scorer import Scorer
from gpt3_jax.generation import Generator
from gpt3_jax.inference.placed import weight_partitions
from gpt3_jax.model.params import Params


class OneSet:
    """One model's scorer and generator, of which one at a time has the weights."""

    def __init__(
        self, scorer: Scorer, tokenizer: Tokenizer, mesh: Mesh | None = None, *, consume: bool = False
    ) -> None:
        """Begins with the weights at the scorer.

        Args:
            mesh: the scorer's, and that on which to generate; None: one device.
            consume: whether the parameters may be deleted when they are moved. Else, and for parameters in another
                dtype than the compute dtype, which cannot be made again from the generator's weights, these lie beside
                them.
        """
        self._scorer, self._tokenizer, self._mesh, self._consume = scorer, tokenizer, mesh, consume
        self._generator: Generator | None = None
        self._moved = False  # whether the generator has the weights, and the scorer none
        self._lost = False  # whether neither has them: a move failed

    @property
    def batch_tokens(self) -> int:
        """Tokens of a scored batch on all devices, padding included."""
        return self._scorer.batch_tokens

    def use(self, params: Params) -> None:
        """Takes other parameters of the same model from now on. What was compiled stays."""
        self._generator, self._moved, self._lost = None, False, False
        self._scorer.use(params)

    def release(self) -> None:
        """Lets go of the parameters and of what was made from them, until `use`."""
        if not (self._moved or self._lost):
            self._scorer.release()
        self._generator, self._moved, self._lost = None, False, True

    def scorer(self) -> Scorer:
        """To be used until `generator` is asked for. Raises RunError if the weights were lost."""
        self._require_weights()
        if self._generator is not None and self._moved:
            generator, self._generator, self._moved, self._lost = self._generator, None, False, True
            self._scorer.use(generator.give_up(self._scorer.shardings))
            self._lost = False
        return self._scorer

    def generator(self) -> Generator:
        """To be used until `scorer` is asked for. Raises RunError if the weights were lost; UserError for a mesh whose
        tensor axis does not divide the model, which loses nothing."""
        self._require_weights()
        if self._generator is None:
            dtypes = {leaf.dtype for leaf in jax.tree.leaves(self._scorer.params)}
            moved = self._consume and dtypes == {jnp.dtype(self._scorer.model.dtype)}
            if self._mesh is not None:
                weight_partitions(self._scorer.model, self._mesh)  # refuses what cannot be moved
            self._lost = moved  # until the move has ended
            params = self._scorer.release() if moved else self._scorer.params
            self._generator = Generator(params, self._scorer.model, self._tokenizer, self._mesh, consume=moved)
            self._moved, self._lost = moved, False
        return self._generator

    def _require_weights(self) -> None:
        if self._lost:
            raise RunError(
                "the model's weights are gone: they were released, or moving them between scoring and generating did "
                "not end; load the model again"
            )
