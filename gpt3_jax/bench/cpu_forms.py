"""Compares the implementations in `model.cpu` with those of other platforms, on this machine's CPU.

    python -m gpt3_jax.bench.cpu_forms

Shapes are those of GPT-3 Small with 2,048 tokens, or one row of generation; bf16. It takes about a minute.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from gpt3_jax.model import cpu
from gpt3_jax.model.attention.blockwise import blockwise
from gpt3_jax.model.attention.by_head import by_head
from gpt3_jax.model.attention.plain import plain
from gpt3_jax.model.attention.triangle import triangle
from gpt3_jax.model.matmul import contract_rows, einsum

ROWS, D, FF, VOCAB, CHUNK = 2048, 768, 3072, 50304, 256
REPEAT = 5


def milliseconds(function: Callable[..., Any], *inputs: jax.Array, donated: bool = False) -> float:
    """The fastest of some runs, compiled ahead. With `donated`, each run updates the first input in place."""
    compiled = jax.jit(function, donate_argnums=0 if donated else ()).lower(*inputs).compile()
    first, *rest = inputs
    times = []
    for _ in range(REPEAT + 1):
        started = time.perf_counter()
        result = jax.block_until_ready(compiled(first, *rest))
        times.append(time.perf_counter() - started)
        first = result if donated else first
    return 1e3 * min(times[1:])


def random(*shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    return jax.random.normal(jax.random.key(0), shape).astype(dtype)


def scatter(cache_NSK: jax.Array, new_BHK: jax.Array, slots_B: jax.Array) -> jax.Array:
    batch, heads, width = new_BHK.shape
    new_NK = new_BHK.reshape(batch * heads, width).astype(cache_NSK.dtype)
    return cache_NSK.at[jnp.arange(batch * heads), jnp.repeat(slots_B, heads)].set(new_NK)


def logits_loss(own: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Mean of -log p over a chunk with padding masked, with `cpu`'s implementation or with masks in the reductions."""

    def loss(logits_CV: jax.Array, labels_C: jax.Array) -> jax.Array:
        column = jnp.arange(VOCAB)
        if own:
            masked_CV = cpu.mask_padding(logits_CV, VOCAB - 47, -1e30)
            label_C = cpu.pick(masked_CV, labels_C)
        else:
            masked_CV = jnp.where(column < VOCAB - 47, logits_CV, -1e30)
            label_C = jnp.sum(jnp.where(labels_C[:, None] == column, masked_CV, 0.0), axis=-1)
        return jnp.mean(jax.nn.logsumexp(masked_CV, axis=-1) - label_C)

    return loss


def training(attention: Callable[..., jax.Array], *qkv_BTHK: jax.Array) -> float:
    """Milliseconds of dense attention, forward and backward."""
    return milliseconds(jax.grad(lambda *qkv: jnp.sum(attention(*qkv, None)), argnums=(0, 1, 2)), *qkv_BTHK)


def without_gradient(attention: Callable[..., jax.Array], *qkv_BTHK: jax.Array) -> float:
    """Milliseconds of dense attention, forward alone."""
    return milliseconds(lambda q, k, v: attention(q, k, v, None), *qkv_BTHK)


def rows() -> dict[str, tuple[float, float]]:
    """For each implementation: its milliseconds, and those of the implementation for other platforms."""
    cache, slots, new = random(12, 2048, 64), jnp.array([7]), random(1, 12, 64)
    labels = jnp.arange(CHUNK, dtype=jnp.int32)
    small, large = [random(1, 128, 12, 64)] * 3, [random(1, 2048, 12, 64)] * 3
    evaluated = [random(11, 352, 12, 64)] * 3
    inputs, output_ct, hidden, logits_ct = random(ROWS, D), random(ROWS, FF), random(CHUNK, D), random(CHUNK, VOCAB)
    table = random(VOCAB, D)

    def product(rows: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda h, w: einsum("rd,vd->rv", jnp.broadcast_to(h, (rows, D)), w, jnp.float32)

    def gradient(platform: str) -> Callable[[jax.Array, jax.Array], jax.Array]:
        return lambda x, ct: contract_rows(x, ct, jnp.float32, platform)

    return {
        "transposed: a kernel's gradient": (
            milliseconds(gradient("cpu"), inputs, output_ct),
            milliseconds(gradient("other"), inputs, output_ct),
        ),
        "row_copies: logits of one row": (
            milliseconds(product(2), table[:1], table),
            milliseconds(product(1), table[:1], table),
        ),
        "cache_dtype, write_rows: one layer's keys": (
            milliseconds(cpu.write_rows, cache.astype(jnp.float32), new.astype(jnp.float32), slots, donated=True),
            milliseconds(scatter, cache, new, slots, donated=True),
        ),
        "makes_vocabulary_last: a chunk's output matrix gradient": (
            milliseconds(gradient("cpu"), hidden, logits_ct),
            milliseconds(lambda ct, h: einsum("cv,cd->vd", ct, h, jnp.float32), logits_ct, hidden),
        ),
        "picks_logits: a chunk's loss": (
            milliseconds(logits_loss(True), logits_ct.astype(jnp.float32), labels),
            milliseconds(logits_loss(False), logits_ct.astype(jnp.float32), labels),
        ),
        "takes_triangle: 11 rows of 352 positions, no gradient": (
            without_gradient(triangle, *evaluated),
            without_gradient(blockwise, *evaluated),
        ),
        "PLAIN_SCORE_BYTES: plain for 128 positions": (training(plain, *small), training(by_head, *small)),
        "attends_by_head: 2,048 positions": (training(by_head, *large), training(blockwise, *large)),
        "PLAIN_SCORE_BYTES: by_head for 2,048 positions": (training(by_head, *large), training(plain, *large)),
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    for name, (ours, other) in rows().items():
        print(f"{name:60} {ours:8.2f} ms, else {other:8.2f} ms")
