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

from gpt3_jax.config import OptimizerConfig
from gpt3_jax.model import cpu
from gpt3_jax.model.attention.blockwise import blockwise
from gpt3_jax.model.attention.by_head import by_head
from gpt3_jax.model.attention.plain import plain
from gpt3_jax.model.attention.triangle import triangle
from gpt3_jax.model.matmul import contract_rows, einsum
from gpt3_jax.train import optimizer

ROWS, D, FF, VOCAB, CHUNK = 2048, 768, 3072, 50304, 256
REPEAT = 5


def milliseconds(function: Callable[..., Any], *inputs: Any, donated: bool = False) -> float:
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


def without_gradient(
    attention: Callable[..., jax.Array], rows: int, length: int, dtype: Any = jnp.bfloat16, band: int | None = None
) -> float:
    """Milliseconds of attention, forward alone."""
    qkv_BTHK = [random(rows, length, 12, 64, dtype=dtype)] * 3
    return milliseconds(lambda q, k, v: attention(q, k, v, band), *qkv_BTHK)


def like_the_triangle(q: jax.Array, k: jax.Array, v: jax.Array, band: int | None) -> jax.Array:
    """`by_head` with the triangle's blocks, and one head of a long row at a time."""
    length = q.shape[1]
    block = cpu.TRIANGLE_BLOCK * -(-length // (4 * cpu.TRIANGLE_BLOCK))
    return by_head(q, k, v, band, block=block, group=12 if length < 512 else 1)


def of_triangle() -> dict[str, tuple[float, float]]:
    """Rows as they are evaluated, without gradient, and by what else they could be computed."""
    fp32, bf16 = jnp.float32, jnp.bfloat16
    found = {}
    for name, other, *shape in (
        ("blockwise", blockwise, 11, 352, bf16, None),
        ("blockwise", blockwise, 2, 1472, bf16, None),
        ("blockwise", blockwise, 11, 352, fp32, None),
        ("blockwise", blockwise, 2, 1472, fp32, None),
        ("by_head", like_the_triangle, 11, 352, bf16, None),
        ("by_head", like_the_triangle, 2, 1472, bf16, None),
        ("by_head", like_the_triangle, 2, 1472, bf16, 128),
        ("by_head", like_the_triangle, 2, 1472, fp32, None),
        ("plain", plain, 1, 256, bf16, None),
        ("plain", plain, 1, 2048, bf16, 128),
    ):
        rows, length, dtype, band = shape
        what = f"{rows} x {length} {jnp.dtype(dtype).name}" + ("" if band is None else f", band {band}")
        ours, theirs = without_gradient(triangle, *shape), without_gradient(other, *shape)
        found[f"takes_triangle: {what}, {name}"] = ours, theirs
    return found


def of_a_projection() -> tuple[float, float]:
    """The gradient of queries, keys and values from those of the three, which attention makes in fp32 head by head."""
    qkv, cts = random(1, ROWS, 3, 12, 64), [random(1, 12, ROWS, 64, dtype=jnp.float32)] * 3

    def slices(qkv_BT3HK: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(qkv_BT3HK[:, :, i] for i in range(3))

    def gradient(parts: Callable[..., Any]) -> Callable[..., jax.Array]:
        def of(qkv: jax.Array, *cts_BHTK: jax.Array) -> jax.Array:
            given = tuple(jnp.swapaxes(ct, 1, 2).astype(qkv.dtype) for ct in cts_BHTK)
            return jax.vjp(parts, qkv)[1](given)[0]  # type: ignore[no-any-return]

        return of

    return milliseconds(gradient(cpu.queries_keys_values), qkv, *cts), milliseconds(gradient(slices), qkv, *cts)


def of_layers(count: int = 12) -> tuple[float, float]:
    """The fp32 gradient of a stack of MLP kernels, from those of its layers."""
    stack, ct = random(count, D, FF, dtype=jnp.float32), random(D, FF)

    def one_by_one(stack: jax.Array, *cts: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: cpu.cast_rows(x, count, ct.dtype), stack)[1](list(cts))[0]  # type: ignore[no-any-return]

    def of_a_scan(_: jax.Array, *cts: jax.Array) -> jax.Array:
        return jnp.concatenate([ct[None] for ct in cts]).astype(jnp.float32)

    return milliseconds(one_by_one, stack, *[ct] * count), milliseconds(of_a_scan, stack, *[ct] * count)


def of_the_update(weights: int = 4 * D * FF) -> tuple[float, float]:
    """AdamW of so many weights, in place and as optax makes it."""
    settings, finite, rate = OptimizerConfig(), jnp.array(True), jnp.float32(1e-4)

    def in_place(state: Any, gradients: jax.Array) -> Any:
        params, moments = state
        return optimizer.update_in_place(settings, True, gradients, moments, params, rate, finite)

    def plain_update(state: Any, gradients: jax.Array) -> Any:
        params, moments = state
        new = optimizer.update(settings, True, gradients, moments, params, rate)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)

    def time_of(update: Callable[..., Any]) -> float:
        params = jnp.ones(weights, jnp.float32)
        state = params, optimizer.init(settings, True, params)
        return milliseconds(update, state, jnp.ones_like(params), donated=True)

    return time_of(in_place), time_of(plain_update)


def rows() -> dict[str, tuple[float, float]]:
    """For each implementation: its milliseconds, and those of the implementation for other platforms."""
    cache, slots, new = random(12, 2048, 64), jnp.array([7]), random(1, 12, 64)
    labels = jnp.arange(CHUNK, dtype=jnp.int32)
    small, large = [random(1, 128, 12, 64)] * 3, [random(1, 2048, 12, 64)] * 3
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
        "queries_keys_values: the gradient of a projection": of_a_projection(),
        "cast_rows: the gradient of a stack of 12 kernels": of_layers(),
        "updates_in_place: 9.4 million weights": of_the_update(),
        **of_triangle(),
        "PLAIN_SCORE_BYTES: plain for 128 positions": (training(plain, *small), training(by_head, *small)),
        "attends_by_head: 2,048 positions": (training(by_head, *large), training(blockwise, *large)),
        "PLAIN_SCORE_BYTES: by_head for 2,048 positions": (training(by_head, *large), training(plain, *large)),
    }


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    for name, (ours, other) in rows().items():
        print(f"{name:60} {ours:8.2f} ms, else {other:8.2f} ms")
