"""The estimate of memory against configurations drawn at random that were compiled; against the kept receipts stands in
test_plan_receipts.py."""

from __future__ import annotations

import statistics
from typing import get_args

import pytest
from compilers import needs_compiler_of
from plans_drawn import Drawn, compiled_bytes, kept

from gpt3_jax.model.remat import Remat
from gpt3_jax.plan import estimate

DRAWN = kept()
CODE = 2**25
"""Of a TPU's programs, which are not in the file."""
BEYOND = {
    # 1.2 times the capacity by the estimate: XLA for GPUs recomputes what does not fit.
    "gpt3-2.7b.h100:1x8-1x1x8-stage0-full-512-1",
    # The gradients of a small model's blocks go into their sums without a stack of their own.
    "gpt3-medium.v6e:16x16-1x32x8-stage1-full-2-1",
    # 0.7 GiB on 64 GPUs; it is the one miss of the last 16, which were drawn when the estimate was done.
    "gpt3-large.h100:8x8-1x32x2-stage3-full-1-1",
}
"""Those that the estimate misses by more than its error, and why."""


def off(drawn: Drawn, compiled: int) -> float:
    """The estimate's error, as a share of what was compiled."""
    need = estimate.memory(drawn.config, drawn.mesh, drawn.microbatches, drawn.platform, drawn.overlaps_scatters)
    return need / (compiled + (CODE if drawn.platform == "tpu" else 0)) - 1


def test_the_estimate_is_within_its_error() -> None:
    errors = {str(drawn): off(drawn, drawn.bytes) for drawn in DRAWN}
    assert len(errors) == len(DRAWN) >= 60
    assert {name for name, error in errors.items() if abs(error) > estimate.ERROR} == BEYOND
    assert statistics.median(map(abs, errors.values())) < 0.03
    # Neither high nor low as a whole.
    assert abs(statistics.median(errors.values())) < 0.01


def test_what_was_drawn_covers_what_a_search_tries() -> None:
    for name, values in {
        "remat": {*get_args(Remat)},
        "stage": {0, 1, 2, 3},
        "tensor": {1, 2, 4, 8},
        "mlp_parts": {1, 8},
    }.items():
        assert {getattr(drawn, name) for drawn in DRAWN} == values
    assert {drawn.topology.partition(":")[0] for drawn in DRAWN} == {"v5e", "v5p", "v6e", "h100"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "drawn", [pytest.param(d, id=str(d), marks=needs_compiler_of(d.topology)) for d in DRAWN[::12]]
)
def test_a_fresh_plan_needs_what_the_kept_one_does(drawn: Drawn) -> None:
    compiled = compiled_bytes(drawn)
    assert compiled == pytest.approx(drawn.bytes, rel=0.03)
    assert abs(off(drawn, compiled)) < estimate.ERROR
