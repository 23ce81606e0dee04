"""Estimates of what a configuration needs and costs, by arithmetic alone. The search uses them to drop what cannot fit
and to order the rest before it compiles. A receipt never contains them.

Bytes are a device's; B tokens of one microbatch on one data shard, D = d_model, L layers, V padded vocabulary, Ψ
parameters of one tensor shard, t tensor shards, N the ZeRO group.
"""

from __future__ import annotations

from gpt3_jax.config import Config
from gpt3_jax.model.params import count_params, train_flops_per_token
from gpt3_jax.parallel.mesh import DATA, REPLICA, TENSOR, MeshShape
from gpt3_jax.plan import elementwise
from gpt3_jax.plan.formulas import psi_of_shard
from gpt3_jax.plan.roofline import Traffic, Work
from gpt3_jax.program.traffic import HOST, ring_share

_KEPT = {"offload": 0, "full": 2, "dots": 22, "none": 36}
"""Bytes of activations kept per layer, token and unit of D, by remat: nothing on the device; the block's input; the
matmuls' results beside it; everything."""
_WORKING = 44
"""Bytes alive within one block, forward and backward, per token and unit of D."""


def memory(config: Config, mesh: MeshShape, microbatches: int) -> float:
    """Estimates the bytes that a device needs."""
    model, stage = config.model, config.parallel.stage
    psi = psi_of_shard(config.model, mesh.tensor)
    group = mesh.data if stage else 1
    tokens = _tokens_of_microbatch(config, mesh, microbatches)
    width = 2 if model.dtype == "bfloat16" else 4
    state = 12 * psi / group
    table = model.n_vocab_padded * model.d_model / mesh.tensor
    block = (psi - table) / model.n_layers
    # Of an MLP in parts, two are there; it has two thirds of a block's weights.
    parts = config.memory.mlp_parts
    there = block if parts == 1 else block * (1 / 3 + 2 / 3 * min(1.0, 2 / parts))
    gathered = width * (psi if stage < 3 else there + table)
    # Below stage 2 in the compute dtype; above, shards of them and what is on its way into them.
    gradients = width * psi if stage < 2 else 4 * psi / group + 4 * min(table, 2**25) + width * there
    if microbatches > 1:
        gradients += 4 * (psi if stage < 2 else psi / group)
    kept = _KEPT[config.memory.remat] * width / 2 * tokens * model.d_model * model.n_layers / mesh.tensor
    working = _WORKING * tokens * model.d_model / mesh.tensor
    logits = 10 * min(config.memory.loss_chunk, tokens) * model.n_vocab_padded / mesh.tensor
    return state + gathered + gradients + kept + max(working, logits)


def work(config: Config, mesh: MeshShape, microbatches: int) -> Work:
    """Estimates what a step computes and moves."""
    model, stage = config.model, config.parallel.stage
    devices = mesh.devices
    tokens = config.train.batch_tokens
    model_flops = 6.0 * count_params(model) * tokens / devices
    attention = train_flops_per_token(model, attention=True) * tokens / devices - model_flops
    again = {"offload": 4 / 3, "full": 4 / 3, "dots": 1.05, "none": 1.0}[config.memory.remat]
    psi = psi_of_shard(config.model, mesh.tensor)
    width = 2 if model.dtype == "bfloat16" else 4
    remat = config.memory.remat
    block = elementwise.block_bytes(model.d_model, model.d_ff, remat) + elementwise.flash_bytes(model.d_model, remat)
    moved = (block * model.n_layers + elementwise.loss_bytes(model.n_vocab_padded)) * tokens / devices
    hbm = moved + elementwise.optimizer_bytes(psi / (mesh.data if stage else 1))
    return Work(
        tokens=tokens,
        devices=devices,
        matmul_flops=again * (model_flops + attention),
        model_flops=model_flops,
        attention_flops=attention,
        hbm_bytes=hbm,
        traffic=tuple(_traffic(config, mesh, microbatches, psi, width)),
    )


def _traffic(config: Config, mesh: MeshShape, microbatches: int, psi: float, width: int) -> list[Traffic]:
    model, stage = config.model, config.parallel.stage
    reduce = 4 if config.parallel.reduce_dtype == "float32" else 2
    ring = float(ring_share("all-gather", mesh.data))
    result = []
    if mesh.data > 1 and stage == 0:
        result.append(Traffic((DATA,), "all-reduce", 2 * ring * reduce * psi, 1))
    elif mesh.data > 1:
        gathers = 2 * microbatches if stage == 3 else 1
        scatters = microbatches if stage >= 2 else 1
        result.append(Traffic((DATA,), "all-gather", gathers * ring * width * psi, model.n_layers))
        result.append(Traffic((DATA,), "reduce-scatter", scatters * ring * reduce * psi, model.n_layers))
    if mesh.replica > 1:
        reduced = reduce * psi / (mesh.data if stage else 1)
        result.append(Traffic((REPLICA,), "all-reduce", float(ring_share("all-reduce", mesh.replica)) * reduced, 1))
    if mesh.tensor > 1:
        tokens = _tokens_of_microbatch(config, mesh, microbatches) * microbatches
        passes = 6 if config.memory.remat in ("full", "offload") else 4
        moved = float(ring_share("all-reduce", mesh.tensor)) * passes * width * tokens * model.d_model * model.n_layers
        result.append(Traffic((TENSOR,), "all-gather", moved, model.n_layers * microbatches))
    if config.memory.remat == "offload":
        tokens = config.train.batch_tokens / mesh.devices
        moved = width * tokens * model.d_model * model.n_layers
        calls = model.n_layers * microbatches
        result += [Traffic((HOST,), "to host", moved, calls), Traffic((HOST,), "from host", moved, calls)]
    return result


def _tokens_of_microbatch(config: Config, mesh: MeshShape, microbatches: int) -> float:
    return config.train.batch_tokens / (mesh.batch_shards * microbatches)
