"""Figures of the GPT-3 paper that are not values of settings: misprints, bounds and the data mixture."""

from __future__ import annotations

RAMP_TOKENS = (4_000_000_000, 12_000_000_000)
"""Appendix B: the batch grows over the first 4 to 12 billion tokens, "depending on the model size"."""

MIXTURE = {"Common Crawl": 60, "WebText2": 22, "Books1": 8, "Books2": 8, "Wikipedia": 3}
"""Table 2.2: weights of the training mixture in per cent, as printed; they sum to 101."""

PRINTED = {
    ("gpt3-xl", "model.n_heads"): (24, "corrected", "24 × 128 is 3072 wide; only 16 × 128 fits Table D.1's count"),
    ("gpt3-13b", "model.d_model"): (5140, "corrected", "only 40 × 128 = 5120 fits Table D.1's count"),
    ("gpt3-175b", "train.batch_tokens"): (
        3_200_000,
        "rounded",
        "that is 1562.5 sequences of 2048; 1536 are whole, and divide over large meshes",
    ),
}
"""Where a shipped size differs from Table 2.1: (size, quantity) to (printed value, what was done, why). The other
batch sizes agree with the table to its one digit: 0.5M is 256 sequences of 2048, 1M 512, 2M 1024."""
