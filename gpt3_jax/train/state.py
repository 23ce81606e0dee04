"""The training state, and how it is sharded over the mesh."""

from __future__ import annotations

from typing import Any, Generic

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt3_jax.config import Config, ModelConfig
from gpt3_jax.model import params as model_params
from gpt3_jax.model.params import Params
from gpt3_jax.parallel.rules import shardings
from gpt3_jax.parallel.zero import parameter_partitions
from gpt3_jax.spec import T
from gpt3_jax.train import optimizer


@flax.struct.dataclass
class TrainState(Generic[T]):
    """Everything that a step needs besides its batch; all arrays of a checkpoint. Trees of partitions, shardings or
    shapes have the same structure."""

    params: Params[T]
    """fp32 master weights."""
    opt_state: Any
    """optax's state, which optax does not type: fp32 moments, sharded as the parameters."""
    step: T
    """Batches consumed, uint32."""
    sequences: T
    """Sequences consumed, uint32: the position in the data stream."""
    skipped: T
    """Updates skipped because loss or gradients were not finite, uint32."""


def create(config: Config) -> TrainState:
    """The initial state. Jit it with `state_shardings` as its output shardings."""
    params = model_params.init(config.model, jax.random.key(config.train.seed))
    mask = model_params.decay_mask(config.model, config.optimizer.weight_decay_on)
    opt_state = optimizer.init(config.optimizer, mask, params)
    # Three arrays, because a shared one could not be donated three times.
    return TrainState(params, opt_state, *(jnp.zeros((), jnp.uint32) for _ in range(3)))


def state_partitions(config: Config, mesh: Mesh) -> TrainState[PartitionSpec]:
    """A PartitionSpec for every leaf. Moments are sharded as their parameters, scalars are replicated."""
    abstract = jax.eval_shape(lambda: create(config))
    specs = parameter_partitions(model_params.param_table(config.model), mesh, config.parallel.stage)

    def is_params(subtree: object) -> bool:
        return isinstance(subtree, Params)

    partitioned: TrainState[PartitionSpec] = jax.tree.map(
        lambda subtree: specs if is_params(subtree) else PartitionSpec(), abstract, is_leaf=is_params
    )
    return partitioned


def parameter_shardings(config: ModelConfig, mesh: Mesh, stage: int) -> Params[NamedSharding]:
    """NamedShardings of the parameters as training at a ZeRO stage keeps them, for use without optimizer state.

    Raises:
        UserError: a dimension that its mesh axes do not divide.
    """
    result: Params[NamedSharding] = shardings(parameter_partitions(model_params.param_table(config), mesh, stage), mesh)
    return result


def state_shardings(config: Config, mesh: Mesh) -> TrainState[NamedSharding]:
    """NamedShardings of the state."""
    result: TrainState[NamedSharding] = shardings(state_partitions(config, mesh), mesh)
    return result


def abstract_state(config: Config, mesh: Mesh) -> TrainState[jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of the state, for compilation and restoring."""
    abstract: TrainState[jax.ShapeDtypeStruct] = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(lambda: create(config)),
        state_shardings(config, mesh),
    )
    return abstract


def init_state(config: Config, mesh: Mesh) -> TrainState:
    """An initial state, created sharded: no device ever holds more than its shards."""
    made: TrainState = jax.jit(create, static_argnums=0, out_shardings=state_shardings(config, mesh))(config)
    return made
