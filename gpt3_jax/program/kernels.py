"""The matmul work of a compiled program, instruction by instruction: matmuls alone, in fusions, and in attention
kernels. `program.flops` counts the same in the traced program."""

from __future__ import annotations

import math
import re

from gpt3_jax.program.attention_kernels import CUDNN_BACKWARD, CUDNN_FORWARD, SPLASH, visible_scores
from gpt3_jax.program.hlo import Instruction, Program
from gpt3_jax.program.shapes import shape_dims

ATTENTION = SPLASH | {
    "__cudnn$fmhaSoftmaxBackward": CUDNN_BACKWARD,
    "__cudnn$fmhaSoftmax": CUDNN_FORWARD,
}
"""Attention kernels by what their custom call is named or targets, and how many matmuls over scores each runs."""


def attention_kernel(instruction: Instruction) -> str:
    """The key of `ATTENTION` that a custom call is of; empty for anything else."""
    if instruction.opcode != "custom-call":
        return ""
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    target = found[1] if found else ""
    if target in ATTENTION:
        return target
    named = f"{instruction.name} {instruction.op_name}" if target == "tpu_custom_call" else ""
    return next((name for name in ATTENTION if name in named), "")


def instruction_flops(program: Program, instruction: Instruction) -> float:
    """Floating-point operations of one run of an instruction, what it is fused with included: 2 for each multiply-add.

    An attention kernel counts as `program.flops` counts it: splash with all the blocks of its grid, cuDNN with the
    scores that its mask lets it see.
    """
    opcode = instruction.opcode
    if opcode == "fusion":
        return sum(instruction_flops(program, i) for i in program.fused(instruction))
    if opcode == "custom-call":
        kernel = attention_kernel(instruction)
        if kernel.startswith("splash"):
            return ATTENTION[kernel] * _splash(program, instruction)
        if kernel:
            return ATTENTION[kernel] * _cudnn(program, instruction)
        if "matmul" not in instruction.attributes and "gemm" not in instruction.attributes:
            return 0.0
    elif opcode not in ("dot", "convolution"):
        return 0.0
    shapes = [_operand(program, instruction, place) for place in (0, 1)] + [_first(instruction.shape)]
    batch = math.prod(shapes[0][int(d)] for d in _listed(instruction, "lhs_batch_dims"))
    # [B, M, K], [B, K, N] and [B, M, N], in whatever order their dimensions stand: 2 B M K N.
    return 2 * math.sqrt(math.prod(map(math.prod, shapes)) / batch)


def _splash(program: Program, kernel: Instruction) -> float:
    """FLOPs of one matmul over all blocks of the grid. Its first operand tells the mask's blocks, [heads, rows, most in
    a row]; blocks are square."""
    blocks = _operand(program, kernel, 0)
    operands = [program.instructions[name].shape for name in kernel.operands if name in program.instructions]
    queries = next(shape for shape in operands if re.match(r"(bf|f)\d", shape) and len(_first(shape)) >= 3)
    *batch, heads, length, width = _first(queries)  # a batch of one has no dimension of its own
    return 2.0 * math.prod(batch) * heads * width * blocks[-2] * blocks[-1] * (length // max(blocks[-2:])) ** 2


def _cudnn(program: Program, kernel: Instruction) -> float:
    """FLOPs of one matmul over visible scores."""
    found = re.search(r'"intermediate_tensor_shape":.*?"dimensions":\s*\[([^\]]*)\]', kernel.attributes)
    window = re.search(r'"sliding_window_length":\s*(\d+)', kernel.attributes)
    assert found, kernel.name
    batch, heads, length, _ = (int(n) for n in re.findall(r"\d+", found[1]))
    visible = visible_scores(length, int(window[1]) if window else None)
    return 2.0 * batch * heads * visible * _operand(program, kernel, 0)[-1]


def _operand(program: Program, instruction: Instruction, place: int) -> tuple[int, ...]:
    found = program.instructions.get(instruction.operands[place])
    return _first(found.shape) if found else ()


def _first(shape: str) -> tuple[int, ...]:
    """Dimensions of a shape; of a tuple's first."""
    return next(iter(shape_dims(shape)), ())


def _listed(instruction: Instruction, attribute: str) -> list[str]:
    found = re.search(rf"\b{attribute}=\{{([\d,]*)\}}", instruction.attributes)
    return [d for d in found[1].split(",") if d] if found else []
