"""Bytes that a step moves through memory outside its matmuls: norms, residuals, activations, softmax, the optimizer.

One rule counts them: everything between two matmuls is one fused operation. It reads each of its inputs once and
writes each of its outputs once, in bf16. Biases are added inside the matmuls; what a matmul reads and writes itself is
part of its efficiency. It is a lower bound: a compiler that fuses less moves more.

Tensor parallelism with a sequence-sharded residual stream divides all of it evenly, so everything is per token and
device.
"""

from __future__ import annotations

from typing import Literal

_BF16 = 2

Remat = Literal["none", "dots", "full"]
"""What published runs recompute: nothing; all but the results of matmuls with weights, attention among it; blocks."""


def block_bytes(d_model: int, d_ff: int, remat: Remat = "none", gated: bool = False) -> int:
    """Bytes per token and block, forward and backward, of all but attention: see `flash_bytes` and `score_bytes`.

    Args:
        d_model: width of the residual stream.
        d_ff: width of the MLP.
        remat: what runs twice.
        gated: whether the activation has a gate beside it, of the same width.
    """
    inputs = 2 if gated else 1
    # Residual sum and norm, twice: reads the stream and what is added, writes the sum and its norm. Backward it reads
    # the stream, the gradient of the norm and that of the sum, and writes one gradient.
    norms = 2 * (4 * d_model)
    # The activation reads its inputs and writes one output; backward it reads its inputs and the output's gradient and
    # writes a gradient for each input.
    activation, activation_back = (inputs + 1) * d_ff, (2 * inputs + 1) * d_ff
    again = 0 if remat == "none" else norms + activation
    return _BF16 * (norms + activation + norms + activation_back + again)


def flash_bytes(d_attention: int, remat: Remat = "none") -> int:
    """Bytes per token and block of a flash-attention kernel, forward and backward.

    Forward it reads queries, keys and values and writes its result; backward it reads these four and the result's
    gradient and writes three gradients.
    """
    forward, backward = 4, 8
    return _BF16 * d_attention * (forward + backward + (0 if remat == "none" else forward))


def score_bytes(n_heads: int, positions: int, remat: Remat = "none") -> int:
    """Bytes per token and block of attention whose scores go through memory, in bf16.

    Softmax reads the scores for the maximum, for the sum and for the quotient, which it writes; its derivative reads
    probabilities and gradients twice and writes once.

    Args:
        n_heads: heads.
        positions: keys that a query's scores are computed for, visible or not.
        remat: what runs twice.
    """
    forward, backward = 4, 5
    return _BF16 * n_heads * positions * (forward + backward + (0 if remat == "none" else forward))


def loss_bytes(n_vocab: int) -> int:
    """Bytes per token of the loss: fp32 logits read for the maximum, the sum and the gradient, which is bf16."""
    return (3 * 4 + _BF16) * n_vocab


def optimizer_bytes(parameters: float) -> float:
    """Bytes per step of AdamW on a device's own shard: reads the gradient, the master weight and both moments, writes
    the latter three, all fp32, and the bf16 copy."""
    return (4 * 4 + 3 * 4 + 2) * parameters
