"""How much work an attention kernel is: the matmuls that each runs over scores, and the scores that its mask lets it
see. Both counts, of the traced program (`program.flops`) and of the compiled one (`program.kernels`), use these."""

from __future__ import annotations

CUDNN_FORWARD, CUDNN_BACKWARD = 2, 5
"""Matmuls over scores: forward two; backward four, and the scores again."""
SPLASH = {"splash_mha_fwd": 2, "splash_mha_dq": 3, "splash_mha_dkv": 4}
"""The same of Pallas's splash kernels, by name."""


def visible_scores(length: int, band: int | None) -> int:
    """Scores of one head that a causal mask leaves: each position sees itself and those before it, at most `band`."""
    band = min(band or length, length)
    return band * (band + 1) // 2 + (length - band) * band
