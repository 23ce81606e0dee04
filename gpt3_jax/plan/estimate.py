"""Estimates of what a configuration needs and costs, by arithmetic alone. The search uses them to drop what cannot fit
and to order the rest before it compiles. A receipt never contains them.

The memory of a step is that of its fullest moment: when the loss is computed, when the first block's backward pass
runs, when the token table's gradient is made, or when gradients are reduced. What is alive then was read from the
buffers of compiled programs, the receipts that are kept and others drawn at random; each figure here says which buffers
it stands for.

Bytes are a device's; n tokens of one microbatch on one data shard, D = d_model, L layers, V a tensor shard's slice of
the padded vocabulary, Ψ parameters of one tensor shard, t tensor shards, N the ZeRO group, c bytes of the compute
dtype.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

from gpt3_jax.config import Config
from gpt3_jax.model.matmul import GRADIENT_PART
from gpt3_jax.model.params import count_params, train_flops_per_token
from gpt3_jax.model.remat import KEPT, Name
from gpt3_jax.model.transformer import TABLE_PART, gathers_ahead, switches_attention
from gpt3_jax.parallel import rings
from gpt3_jax.parallel.mesh import DATA, REPLICA, TENSOR, MeshShape
from gpt3_jax.plan import elementwise
from gpt3_jax.plan.formulas import psi_of_shard
from gpt3_jax.plan.roofline import Traffic, Work
from gpt3_jax.program.traffic import HOST, ring_share

ERROR = 0.10
"""How far `memory` may be from what is compiled, as a share of that. Tests hold it to this for every receipt."""

_TPU_CODE = 2**25
"""The program itself lies in a TPU's memory: 25 to 54 MiB in the receipts. A GPU's compiler does not say."""
_LANES = 128
"""A TPU pads the last dimension of what it keeps to this. Only heads narrower than it are kept in such an array."""
_ON_CHIP = 2**27
"""A TPU's memory on the chip: a buffer that passes between two operations and is smaller may lie there instead."""


@dataclasses.dataclass(frozen=True)
class _Alive:
    """Activations of a block in bytes for each token of a microbatch and unit of D, in bf16: what every tensor shard
    holds whole (rows gathered for a matmul, and partial sums), and what tensor shards split."""

    whole: float
    split: float

    def over(self, tensor: int) -> float:
        return self.whole + self.split / tensor


_WORKING = {"tpu": _Alive(8, 28), "gpu": _Alive(8, 24), "gpu pair": _Alive(14, 38)}
"""Alive in the backward pass of a block that is computed again, but for the MLP's hidden units. Whole: the two gathered
inputs of its matmuls, the gathered gradient of its output and the gradient of an input, 2 each. Split: queries, keys,
values and the heads' output with their gradients, 2 each, and some residual streams. Where a GPU's program has two
blocks in one iteration, a kernel's gradient waits, with all it needs, until the other block's."""
_HIDDEN = {"tpu": 10, "gpu": 32, "gpu pair": 42}
"""The MLP's hidden units before and after the activation and their gradient, 8 each; parts divide them. A GPU has them
in fp32 beside, 16, and of two blocks. On a TPU they are there when the attention's are not: what they take more."""
_WORKING_NONE = _Alive(4, 20)
"""The same where nothing is computed again: the gradients alone; the rest is among what is kept."""


def _padding(config: Config) -> float:
    """How much more memory a TPU takes for an array of heads than it has elements."""
    d_head = config.model.d_head
    return math.ceil(d_head / _LANES) * _LANES / d_head


def _working(config: Config, tensor: int, unit: float, gpu: bool, pair: bool) -> float:
    """Alive in the backward pass of one block beside what is kept, in bytes as in `_Alive`, `unit` times."""
    if config.memory.remat == "none":
        return _WORKING_NONE.over(tensor)
    program = "tpu" if not gpu else "gpu pair" if pair else "gpu"
    most = _WORKING[program].over(tensor) + _HIDDEN[program] / config.memory.mlp_parts / tensor
    padding = _padding(config)
    if not gpu and 6 * padding * unit / tensor > _ON_CHIP:
        # The gradients of queries, keys and values lie there one by one, and twice joined, all padded, before those of
        # the MLP, with two of its hidden units, are through.
        most = max(most, _Alive(8, 10 + 16 / config.memory.mlp_parts + 24 * padding).over(tensor))
    return most


_NAMED: Mapping[Name, float] = MappingProxyType(
    {"block_input": 0, "attention": 2, "residual": 2, "qkv_proj": 6, "mlp_up": 8}
)
"""Bytes of what a policy keeps by name, as the split ones of `_Alive`. The input of a block is there anyway; the
log-sum-exp of each row of scores is left out. So is a TPU's padding of narrow heads (`_padding`): no program that keeps
attention or qkv_proj by name was compiled for a TPU with heads narrower than 128. If such a program pads them, heads of
64 take up to twice these two figures. A search learns that when it compiles."""


def _kept(config: Config, gpu: bool, pair: bool) -> _Alive:
    """Kept for the backward pass, for each layer."""
    if config.memory.remat == "offload":
        return _Alive(0, 0)
    if config.memory.remat != "none":
        # The block's input, and what has a name.
        return _Alive(0, 2 + sum(_NAMED[name] for name in KEPT[config.memory.remat]))
    # Whole: the gathered inputs of both halves. Split: hidden units before and after the activation, 16; queries, keys,
    # values and the heads' output for the attention's kernel, 8; that output for its projection, 2; the streams, 4.
    return _Alive(4, 16 + 8 * (1.0 if gpu else _padding(config)) + 2 + 4)


def memory(config: Config, mesh: MeshShape, microbatches: int, platform: str, overlaps_scatters: bool) -> float:
    """Estimates the bytes that a device needs.

    Args:
        platform: tpu, or gpu; any other is taken for a GPU.
        overlaps_scatters: whether the compiler runs reduce-scatters beside compute (`compiler_options`).
    """
    model, stage, remat = config.model, config.parallel.stage, config.memory.remat
    gpu = platform != "tpu"
    width = 2 if model.dtype == "bfloat16" else 4
    group = mesh.data if stage else 1
    several = microbatches > 1
    tokens = _tokens_of_microbatch(config, mesh, microbatches)
    unit = width / 2 * tokens * model.d_model
    psi = psi_of_shard(model, mesh.tensor)
    vocab = model.n_vocab_padded / mesh.tensor
    table = vocab * model.d_model
    blocks = psi - table - model.n_ctx * model.d_model
    pair = gpu and len(model.attention_pattern) > 1 and not switches_attention(model, mesh.tensor, "gpu")

    # Throughout: master weights and moments; with several microbatches the sums of their gradients.
    held = 12 * psi / group
    if several:
        held += 4 * psi / (group if stage >= 2 else 1)
    # Below stage 3 all weights are there. The table's are free in the backward pass if no microbatch follows.
    weights = width * psi if stage < 3 else 0
    kept = unit * model.n_layers * _kept(config, gpu, pair).over(mesh.tensor)
    if remat == "none" and stage == 3:
        kept += width * blocks / group  # the shards, cast, from which each block is gathered again
    elif remat == "none" and pair:
        kept += width * blocks  # each block's weights, cut out of the pair
    # The gradient of the output matrix, until that of the token table is made (`loss.Deferred`). The compiler rounds it
    # before or after the blocks; if before, the table's own gradient has the place.
    product = tokens > model.d_model
    deferred = 4 * table if product else width * tokens * (vocab + model.d_model)
    gradients = width * (psi - table) if stage < 2 else 4 * psi / group
    if stage == 1:
        # What the reduce-scatter after the loss writes into; of several, the compiler makes some as early as here.
        gradients += 4 * psi / group / 2

    rows = math.ceil(tokens / math.ceil(tokens / min(config.memory.loss_chunk, tokens)))
    # Measured on v5p and v6e, with their gradient beside them, and v5e, without; other TPUs by whether they overlap
    # scatters. Without it the estimates of small and medium on v5p:8x8x8 and of small on v6e:16x16 are more than a
    # tenth too low; with it those of small on v5e:16x16 and v5e:4x4 are more than a tenth too high.
    logits = (4 + (width if gpu or overlaps_scatters else 0)) * rows * vocab
    streams = unit * (4 + 2 / mesh.tensor)
    block = width * blocks / model.n_layers
    # The last block's weights stay gathered for the backward pass; in it there is one block's more (`zero.depth`).
    ahead = block if gathers_ahead(config, mesh, platform, overlaps_scatters) else 0
    loss = weights + (width * table if stage == 3 else 0) + ahead + kept + deferred + logits + streams

    working = unit * _working(config, mesh.tensor, unit, gpu, pair)
    if stage == 3:
        # Of an MLP in parts, two are there; it has two thirds of a block's weights.
        parts = config.memory.mlp_parts
        working += ahead + block * (1 / 3 + 2 / 3 * min(1.0, 2 / parts))
    if ahead:
        working += 2 * block  # one block's gradients are made, another's reduced
    elif stage >= 2:
        working += 2 * width * min(blocks / model.n_layers / 3, GRADIENT_PART)  # a part is made, another is reduced
    backward = weights + kept + gradients + deferred + working
    if stage < 3 and not several:
        backward -= width * table

    # A part of the table's gradient and the same on its way; from two factors it is multiplied out beside them.
    part = 4 * table / math.ceil(table / TABLE_PART) if stage >= 2 else 0
    embedding = (weights if several else 0) + gradients + deferred + (2 if product else 3) * part + 4 * unit

    # At stage 0 a single microbatch's gradients are there, rounded, and reduced in fp32.
    update = (width + 4) * psi if stage == 0 and not several else 0

    return held + max(loss, backward, embedding, update) + (0 if gpu else _TPU_CODE)


_MOVED = {
    "on chip": {
        "full": _Alive(26, 170),
        "save_attention": _Alive(26, 190),
        "save_qkv_proj": _Alive(26, 200),
        "minimal": _Alive(26, 210),
        "none": _Alive(26, 260),
    },
    "tpu": {
        "full": _Alive(3, 295),
        "save_attention": _Alive(3, 300),
        "save_qkv_proj": _Alive(3, 310),
        "minimal": _Alive(3, 330),
        "none": _Alive(3, 340),
    },
    "gpu": {
        "full": _Alive(20, 240),
        "save_attention": _Alive(20, 257),
        "save_qkv_proj": _Alive(20, 293),
        "minimal": _Alive(20, 321),
        "none": _Alive(20, 360),
    },
}
_MOVED_WEIGHTS = {"on chip": 4, "tpu": 5, "tpu ahead": 10, "gpu": 23}
"""What compiled programs move through memory outside their matmuls, in bytes for each token, layer and unit of D, and
for each weight and microbatch. Those of full and none are medians over 33 programs for GPUs, 50 for TPUs whose hidden
units fit on the chip, and 19 where they do not, compiled before policies had names. Of the named policies no such
record is kept: their figures lie between. They order a search, which compiles what it recommends. `elementwise` is the
least that it could be, 136 where a block is computed again and 96 elsewhere. What is kept is copied into stacks of all
layers and out of them: hence more is moved where less is computed again.

Where a TPU's loop over depth gathers ahead, its hidden units are not on the chip, and without a tensor axis it moves
twice as much for each weight: 9 to 11 bytes in six programs of 6.7B, 13B and 175B for v5p:8x8x8."""


_AGAIN: Mapping[str, int] = MappingProxyType(
    {"none": 0, "minimal": 0, "save_qkv_proj": 4, "save_attention": 7, "full": 8, "offload": 8}
)
"""Weights of a block, in D², that are multiplied by again in the backward pass."""


_RINGS_AGAIN: Mapping[str, float] = MappingProxyType(
    {"full": 1.5, "offload": 1.5, "save_attention": 1.0, "save_qkv_proj": 0.5}
)
"""Rings of a block that run again in the backward pass, in the bytes of an all-reduce, which are those of two rings."""


_GATHERS_WAITED, _SCATTERS_WAITED = 0.5, 1.0
"""The shares of ZeRO's gathers and reduce-scatters that a TPU waits for where its loop over depth is a plain scan. By
the compiled schedules of the eleven receipts for v5e, all sizes, it waits for 34 to 76 % of the gathers and for all
reduce-scatters (a test reads them). Of 6.7B on v5p:4x4x4, before it had the loop (the plain scan of
parallel/README.md), it waited for 48 and 84 %. A GPU hides them behind other matmuls of the same block."""


def work(config: Config, mesh: MeshShape, microbatches: int, platform: str, overlaps_scatters: bool) -> Work:
    """Estimates what a step computes and moves.

    Args:
        platform: tpu, or gpu; any other is taken for a GPU.
        overlaps_scatters: as for `memory`.
    """
    model, stage, remat = config.model, config.parallel.stage, config.memory.remat
    devices = mesh.devices
    tokens = config.train.batch_tokens
    model_flops = 6.0 * count_params(model) * tokens / devices
    attention = train_flops_per_token(model, attention=True) * tokens / devices - model_flops
    # Of a block that is computed again no gradient needs the MLP's last matmul, 4 of its 12 D².
    matmuls = 2.0 * _AGAIN[remat] * model.d_model**2 * model.n_layers * tokens / devices
    again = matmuls + (attention / 3 if remat in ("full", "offload") else 0)
    psi = psi_of_shard(config.model, mesh.tensor)
    width = 2 if model.dtype == "bfloat16" else 4
    hidden = 4 * width * _tokens_of_microbatch(config, mesh, microbatches) * model.d_model / mesh.tensor
    ahead = gathers_ahead(config, mesh, platform, overlaps_scatters)
    compiler = "gpu" if platform != "tpu" else "tpu" if hidden > _ON_CHIP or ahead else "on chip"
    weights = "tpu ahead" if compiler == "tpu" and ahead and mesh.tensor == 1 else compiler
    moved = _MOVED[compiler]["full" if remat == "offload" else remat]
    each = moved.over(mesh.tensor) if mesh.tensor > 1 else moved.split
    hbm = each * tokens / mesh.batch_shards * model.d_model * model.n_layers
    hbm += elementwise.loss_bytes(model.n_vocab_padded) * tokens / devices
    hbm += _MOVED_WEIGHTS[weights] * psi * microbatches
    hbm += elementwise.optimizer_bytes(psi / (mesh.data if stage else 1))
    return Work(
        tokens=tokens,
        devices=devices,
        matmul_flops=model_flops + attention + again,
        model_flops=model_flops,
        attention_flops=attention,
        hbm_bytes=hbm,
        traffic=tuple(_traffic(config, mesh, microbatches, platform, overlaps_scatters, psi, width)),
    )


def _traffic(
    config: Config, mesh: MeshShape, microbatches: int, platform: str, overlaps_scatters: bool, psi: float, width: int
) -> list[Traffic]:
    model, stage = config.model, config.parallel.stage
    reduce = 4 if config.parallel.reduce_dtype == "float32" else 2
    ring = float(ring_share("all-gather", mesh.data))
    result = []
    if mesh.data > 1 and stage == 0:
        result.append(Traffic((DATA,), "all-reduce", 2 * ring * reduce * psi, 1))
    elif mesh.data > 1:
        gathers = 2 * microbatches if stage == 3 else 1
        scatters = microbatches if stage >= 2 else 1
        table = (model.n_vocab_padded / mesh.tensor + model.n_ctx) * model.d_model
        # One block's more at the ends of the loop over depth (`zero.depth`).
        ahead = gathers_ahead(config, mesh, platform, overlaps_scatters)
        more = microbatches * (psi - table) / model.n_layers if ahead else 0.0
        gathered, scattered = gathers * psi + more, scatters * psi + more
        plain = platform == "tpu" and not ahead
        waited = (_GATHERS_WAITED, _SCATTERS_WAITED) if plain else (None, None)
        to_gather, to_scatter = ring * width * gathered, ring * reduce * scattered
        result.append(Traffic((DATA,), "all-gather", to_gather, model.n_layers, waited[0]))
        result.append(Traffic((DATA,), "reduce-scatter", to_scatter, model.n_layers, waited[1]))
    if mesh.replica > 1:
        reduced = reduce * psi / (mesh.data if stage else 1)
        result.append(Traffic((REPLICA,), "all-reduce", float(ring_share("all-reduce", mesh.replica)) * reduced, 1))
    if mesh.tensor > 1:
        tokens = _tokens_of_microbatch(config, mesh, microbatches) * microbatches
        # Two gathers and two scatters of a block, forward and backward, are the bytes of four all-reduces. The gathers
        # run again, and with full remat all but the last scatter. One gather and one scatter more stand at the head and
        # the embedding.
        again = {"none": 0.0, "full": 1.5, "offload": 1.5}.get(config.memory.remat, 1.0)
        passes = 4 + again + 2 / model.n_layers
        # In rings: those forward, and again where the backward pass does not find their matmul's result.
        ringed = 2 + _RINGS_AGAIN.get(config.memory.remat, 0.0) if rings.chosen(config.parallel) else 0.0
        if config.memory.mlp_parts > 1:
            ringed = min(ringed, 2.0)  # those of attention alone
        one = float(ring_share("all-reduce", mesh.tensor)) * width * tokens * model.d_model * model.n_layers
        calls = model.n_layers * microbatches
        result.append(Traffic((TENSOR,), "all-gather", (passes - ringed) * one, calls))
        if ringed:
            result.append(Traffic((TENSOR,), "permute", ringed * one, calls))
    if config.memory.remat == "offload":
        tokens = config.train.batch_tokens / mesh.devices
        moved = width * tokens * model.d_model * model.n_layers
        calls = model.n_layers * microbatches
        result += [Traffic((HOST,), "to host", moved, calls), Traffic((HOST,), "from host", moved, calls)]
    return result


def _tokens_of_microbatch(config: Config, mesh: MeshShape, microbatches: int) -> float:
    return config.train.batch_tokens / (mesh.batch_shards * microbatches)
