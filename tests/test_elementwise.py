"""Bytes outside the matmuls, against a list of the operations with what each reads and writes."""

from __future__ import annotations

import pytest

from gpt3_jax.plan import elementwise
from gpt3_jax.plan.elementwise import Remat

D, A, F = 7, 11, 13


def moved(operations: list[tuple[list[int], list[int]]]) -> int:
    """bf16 bytes: each operation's inputs and outputs, once."""
    return 2 * sum(sum(reads) + sum(writes) for reads, writes in operations)


NORM = ([D, D], [D, D])
NORM_BACK = ([D, D, D], [D])
GELU, GELU_BACK = ([F], [F]), ([F, F], [F])
GATE, GATE_BACK = ([F, F], [F]), ([F, F, F], [F, F])
FLASH, FLASH_BACK = ([A, A, A], [A]), ([A, A, A, A, A], [A, A, A])


@pytest.mark.parametrize(
    ("remat", "again"),
    [("none", []), ("dots", [NORM, GELU, NORM]), ("full", [NORM, GELU, NORM])],
)
def test_block(remat: Remat, again: list[tuple[list[int], list[int]]]) -> None:
    operations = [NORM, GELU, NORM, NORM_BACK, GELU_BACK, NORM_BACK, *again]
    assert elementwise.block_bytes(D, F, remat) == moved(operations)


def test_gated_block() -> None:
    operations = [NORM, GATE, NORM, NORM_BACK, GATE_BACK, NORM_BACK]
    assert elementwise.block_bytes(D, F, gated=True) == moved(operations)
    assert elementwise.block_bytes(D, F, "full", gated=True) == moved([*operations, NORM, GATE, NORM])


@pytest.mark.parametrize(("remat", "again"), [("none", []), ("dots", [FLASH]), ("full", [FLASH])])
def test_flash(remat: Remat, again: list[tuple[list[int], list[int]]]) -> None:
    assert elementwise.flash_bytes(A, remat) == moved([FLASH, FLASH_BACK, *again])


def test_scores_through_memory() -> None:
    s = 3 * 50  # heads, context
    softmax = [([s], []), ([s], []), ([s], [s])]
    derivative = [([s, s], []), ([s, s], [s])]
    assert elementwise.score_bytes(3, 50) == moved([*softmax, *derivative])
    assert elementwise.score_bytes(3, 50, "full") == moved([*softmax, *derivative, *softmax])


def test_loss_and_optimizer() -> None:
    assert elementwise.loss_bytes(100) == 100 * (3 * 4 + 2)
    # Gradient, weight and two moments in; weight, two moments and the bf16 copy out.
    assert elementwise.optimizer_bytes(100) == 100 * (4 * 4 + 3 * 4 + 2)
