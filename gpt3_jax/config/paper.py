"""Figures of the GPT-3 paper that are no setting's value: what it prints otherwise, its bounds, its mixture."""

from __future__ import annotations

RAMP_TOKENS = (4_000_000_000, 12_000_000_000)
"""Appendix B: the batch grows over the first 4 to 12 billion tokens, "depending on the model size"."""

MIXTURE = {"Common Crawl": 60, "WebText2": 22, "Books1": 8, "Books2": 8, "Wikipedia": 3}
"""Table 2.2: weights of the training mixture in per cent, though they sum to 101."""

PRINTED = {
    ("gpt3-xl", "model.n_heads"): (24, "a misprint: 24 × 128 is 3072 wide; 16 × 128 fits Table D.1's count"),
    ("gpt3-xl", "model.d_head"): (128, ""),
    ("gpt3-13b", "model.d_model"): (5140, "a misprint: only 40 × 128 = 5120 fits Table D.1's count"),
    ("gpt3-175b", "train.batch_tokens"): (
        3_200_000,
        "rounded: 3.2M is 1562.5 sequences of 2048; 1536 is the nearest that large meshes divide",
    ),
}
"""Table 2.1 where the shipped sizes differ from what it prints: (size, quantity): what it prints, and why."""

TABLE_D_1 = {
    "gpt3-small": 125, "gpt3-medium": 356, "gpt3-large": 760, "gpt3-xl": 1_320, "gpt3-2.7b": 2_650,
    "gpt3-6.7b": 6_660, "gpt3-13b": 12_850, "gpt3-175b": 174_600,
}  # fmt: skip
"""Table D.1: parameters in millions, as printed."""
