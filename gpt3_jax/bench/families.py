"""Assigns each executed operation of the training step to a family.

The family follows from the kind of instruction and from the step's named scopes (`model.transformer`, `model.loss`,
`parallel.zero`, `train.step`), which the compiled program keeps as each instruction's ``op_name``. An accelerator's
library kernels are recognised by their own names.
"""

from __future__ import annotations

import re
from typing import Literal

from gpt3_jax.program.hlo import COLLECTIVES, Instruction, Program

Family = Literal[
    "matmul", "attention", "loss", "norm", "elementwise", "embedding", "optimizer", "weights", "collectives", "copies",
    "loops", "unknown", "idle",
]  # fmt: skip

FAMILIES: dict[Family, str] = {
    "matmul": "projections and the MLP, forward and backward",
    "attention": "scores, softmax and values of attention, without its projections",
    "loss": "logits, softmax and their gradients, matmuls included",
    "norm": "LayerNorm",
    "elementwise": "activations, biases, residual sums, and what is fused with them",
    "embedding": "look-up and its gradient, including the output matrix's",
    "optimizer": "AdamW, the gradient's norm and clipping",
    "weights": "casts and copies of weights and gradients that ZeRO gathers and reduces",
    "collectives": "while no other operation runs; overlapped time counts for the other operation",
    "copies": "copies and fills inserted by the compiler",
    "loops": "loops and branches themselves, while no operation inside them runs",
    "unknown": "operations that the compiled program does not name",
    "idle": "no operation runs",
}
"""All families with their descriptions, in the order of tables."""

CONTROL = frozenset({"while", "conditional", "call"})
"""Opcodes whose time is that of the instructions they run."""

_MATMULS = frozenset({"dot", "convolution", "ragged-dot", "scaled-dot"})
_MOVES = frozenset(
    {"copy", "copy-start", "copy-done", "transpose", "bitcast", "concatenate", "broadcast", "pad", "iota",
     "convert", "slice", "dynamic-slice", "dynamic-update-slice", "reshape", "parameter", "constant", "tuple",
     "get-tuple-element", "fusion", "custom-call"}
)  # fmt: skip
_LINEAGE = 6
"""Maximum number of operands that are followed back."""
_SCOPES: tuple[tuple[frozenset[str], Family], ...] = (
    (frozenset({"optimizer", "clip"}), "optimizer"),
    (frozenset({"head_loss"}), "loss"),
)
_KERNELS: tuple[tuple[re.Pattern[str], Family], ...] = (
    (re.compile(r"nccl|all[-_]?(gather|reduce|to[-_]?all)|reduce[-_]?scatter|collective[-_]?permute", re.I),
     "collectives"),
    (re.compile(r"fmha|flash|sdpa|splash", re.I), "attention"),
    (re.compile(r"gemm|nvjet|cutlass|cublas|matmul|\bdot\b|^dot_|xmma", re.I), "matmul"),
    (re.compile(r"mem(cpy|set)|copy|transpose", re.I), "copies"),
)  # fmt: skip


def family(instruction: Instruction, program: Program) -> Family:
    """The family of one instruction of the compiled step."""
    instruction = _started(instruction, program)
    opcode = instruction.opcode
    if opcode in CONTROL:
        return "loops"
    inside = _inside(instruction, program)
    opcodes = {opcode, *(i.opcode for i in inside)}
    matmul = bool(opcodes & _MATMULS) or _is_matmul_call(instruction)
    # A matmul that a TPU's compiler has fused with part of a collective hides the collective.
    if not matmul and any(one.removesuffix("-start").removesuffix("-done") in COLLECTIVES for one in opcodes):
        return "collectives"
    scopes = re.split(r"[/()]+", scope(instruction, program))
    for names, found in _SCOPES:
        if names & set(scopes):
            return found
    # The scope of the layer and that of attention itself have the same name. It appears once in the names of
    # projections and their biases, and twice in the others.
    if scopes.count("attention") > 1 or "fmha" in instruction.attributes:
        return "attention"
    if "embed" in scopes:
        return "embedding"
    if matmul or scopes[-1] == "dot_general":
        return "matmul"
    if "norm" in scopes:
        return "norm"
    if {"gather_weights", "reduce_gradients"} & set(scopes):
        return "weights"
    return "copies" if opcodes <= _MOVES else "elementwise"


def kernel_family(name: str) -> Family:
    """The family of a kernel whose name the compiled program does not contain."""
    return next((found for pattern, found in _KERNELS if pattern.search(name)), "unknown")


def scope(instruction: Instruction, program: Program) -> str:
    """The name of an instruction's `origin` in the traced program, with its named scopes; empty if it has none."""
    found = origin(instruction, program)
    # An instruction that the compiler merged from several has all their names.
    return re.split(r"[;:]", found.op_name)[0] if found else ""


def origin(instruction: Instruction, program: Program) -> Instruction | None:
    """The instruction that this one comes from: itself, if it has a name in the traced program.

    For a fusion it is the last part that has a name. An instruction without a name, such as the first half of a sum
    that the compiler split, belongs to the origin of its operand. One that only moves data belongs to none (None).
    """
    for _ in range(_LINEAGE):
        parts = (instruction, *reversed(_inside(instruction, program)))
        named = next((part for part in parts if part.op_name), None)
        if named is not None or {part.opcode for part in parts} <= _MOVES:
            return named
        before = next((program.instructions[o] for o in instruction.operands if o in program.instructions), None)
        if before is None or before.opcode in CONTROL | {"parameter"}:
            return None
        instruction = before
    return None


def _started(instruction: Instruction, program: Program) -> Instruction:
    """The first half of an asynchronous operation, given a later half."""
    for _ in range(_LINEAGE):
        later = instruction.opcode.endswith("-done") or instruction.opcode == "async-update"
        if not later or not instruction.operands or instruction.operands[0] not in program.instructions:
            break
        instruction = program.instructions[instruction.operands[0]]
    return instruction


def _inside(instruction: Instruction, program: Program) -> list[Instruction]:
    """The instructions of a fusion, or of the computation of an asynchronous start."""
    if instruction.opcode not in ("fusion", "async-start"):
        return []
    return [
        i for name in instruction.called("calls", "called_computations") for i in program.computation(name).values()
    ]


def _is_matmul_call(instruction: Instruction) -> bool:
    """Whether it is a call of cuBLAS, or a matmul fused by Triton."""
    named = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    triton = instruction.opcode == "fusion" and "triton_gemm" in instruction.attributes
    return triton or bool(named and re.search(r"gemm|matmul|cublas", named[1], re.IGNORECASE))
