"""AdamW from optax, with the paper's learning rate as a function of tokens (GPT-3 appendix B)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from gpt3_jax.config import OptimizerConfig


def learning_rate(config: OptimizerConfig) -> optax.Schedule:
    """Learning rate by tokens consumed, including the update's own batch: warm-up, cosine, constant."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if config.warmup_tokens else config.peak_lr,
        peak_value=config.peak_lr,
        # Floats, because the number of tokens may exceed JAX's 32-bit integers.
        warmup_steps=float(config.warmup_tokens),  # type: ignore[arg-type]
        decay_steps=float(config.decay_tokens + (config.warmup_tokens if config.decay_after_warmup else 0)),  # type: ignore[arg-type]
        end_value=config.final_lr_fraction * config.peak_lr,
    )


def transformation(config: OptimizerConfig, decay_mask: Any) -> optax.GradientTransformation:
    """AdamW's update direction, weight decay included. The step scales it by the learning rate."""
    return optax.chain(
        optax.scale_by_adam(b1=config.beta1, b2=config.beta2, eps=config.eps),
        _decay(config, decay_mask),
    )


def _decay(config: OptimizerConfig, decay_mask: Any) -> optax.GradientTransformation:
    return optax.add_decayed_weights(config.weight_decay, mask=decay_mask)


def init(config: OptimizerConfig, decay_mask: Any, params: Any) -> Any:
    """The optimizer's state: fp32 moments in the parameters' shapes."""
    return transformation(config, decay_mask).init(params)


def update(
    config: OptimizerConfig, decay_mask: Any, gradients: Any, state: Any, params: Any, learning_rate: jax.Array
) -> tuple[Any, Any]:
    """New parameters and optimizer state from clipped gradients. Elementwise, so it runs on shards directly."""
    direction, state = transformation(config, decay_mask).update(gradients, state, params)
    params = jax.tree.map(lambda p, d: p - learning_rate * d, params, direction)
    return params, state


def update_in_place(
    config: OptimizerConfig,
    decay_mask: Any,
    gradients: Any,
    state: Any,
    params: Any,
    learning_rate: jax.Array,
    finite: jax.Array,
) -> tuple[Any, Any]:
    """As `update`, and the old values where `finite` is false. The parameters are computed from the new moments, never
    from the old ones, which the compiler can then overwrite (`cpu.updates_in_place`): the direction is that of
    `optax.scale_by_adam`, from its state."""
    _, new = transformation(config, decay_mask).update(gradients, state, params)
    new = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    adam, decay = new
    mean = optax.tree.bias_correction(adam.mu, config.beta1, adam.count)
    square = optax.tree.bias_correction(adam.nu, config.beta2, adam.count)
    direction = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + config.eps), mean, square)
    direction, _ = _decay(config, decay_mask).update(direction, decay, params)
    params = jax.tree.map(lambda p, d: jnp.where(finite, p - learning_rate * d, p), params, direction)
    return params, new


def clip_factor(config: OptimizerConfig, norm: jax.Array) -> jax.Array:
    """Factor that scales gradients of this global norm down to `clip_norm`; 1 below it, or if `clip_norm` is 0."""
    return jnp.minimum(1.0, config.clip_norm / jnp.maximum(norm, 1e-30)) if config.clip_norm else jnp.ones_like(norm)
