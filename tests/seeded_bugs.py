"""Bugs that the tests must catch: each a small change of the source, and the test that fails with it."""

from __future__ import annotations

import dataclasses
from typing import Any

from step_cells import Cell

EQUALS_ONE_DEVICE = ("test_zero", "assert_like_one_device", (Cell(1, (2, 2, 2), 1, "full"),))
EQUALS_ONE_DEVICE_AT_STAGE_3 = ("test_zero", "assert_like_one_device", (Cell(3, (2, 2, 2), 3, "full"),))
RECIPE = ("test_step", "test_training_is_the_recipe", ())


@dataclasses.dataclass(frozen=True)
class Bug:
    name: str
    file: str
    """Within the package."""
    line: str
    """What is replaced; it must stand in the file exactly once."""
    by: str
    caught_by: tuple[str, str, tuple[Any, ...]]
    """Test module, function, arguments."""
    refused: str = ""
    """Part of JAX's error, where the types of `shard_map` refuse the program before a test could."""


BUGS = (
    Bug(
        "stage 1 rounds the sum over microbatches to the compute dtype",
        "parallel/zero/stages.py",
        "reduce = how.reduce_scatter",
        "reduce = lambda whole: how.reduce_scatter(whole.astype(how.compute))",
        ("test_step", "test_stage_1_reduces_the_sum_over_microbatches_unrounded", ()),
    ),
    Bug(
        "the inputs of blocks stay on the device",
        "model/transformer.py",
        'run = named if remat == "offload" else one_block',
        "run = one_block",
        (
            "test_offload",
            "test_each_blocks_input_goes_to_the_host_and_comes_back_once",
            (Cell(3, (1, 8, 1), 1, "offload"),),
        ),
    ),
    Bug(
        "a bias's gradient loses one row",
        "model/pointwise.py",
        "return jnp.sum(ct.astype(jnp.float32), axis=leading)",
        "return jnp.sum(ct[1:].astype(jnp.float32), axis=leading)",
        ("test_model", "test_derivatives_of_our_own_are_those_of_autodiff", ("add_bias",)),
    ),
    Bug(
        "a LayerNorm's derivative forgets that it divides by the deviation of its own input",
        "model/pointwise.py",
        "- normal * along)",
        ")",
        ("test_model", "test_derivatives_of_our_own_are_those_of_autodiff", ("layer_norm",)),
    ),
    Bug(
        "each shard divides its loss by its own tokens",
        "train/step.py",
        "n_tokens = float(n_sequences * config.model.n_ctx)",
        "n_tokens = float(rows.shape[0] * config.model.n_ctx)",
        EQUALS_ONE_DEVICE,
    ),
    Bug(
        "the loss is summed over data but not over replicas",
        "train/step.py",
        "loss = lax.psum(loss, batch_axes)",
        'loss = lax.psum(loss, "data")',
        EQUALS_ONE_DEVICE,
        refused="replica",
    ),
    Bug(
        "gradients are not summed over replicas",
        "parallel/zero/stages.py",
        "left = tuple(axis for axis in self.local.axes if axis not in sharded_axes(partition))",
        'left = tuple(axis for axis in self.local.axes if axis not in ("replica", *sharded_axes(partition)))',
        EQUALS_ONE_DEVICE,
        refused="replica",
    ),
    Bug(
        "gradients of LayerNorms and biases are not summed over tensor shards",
        "parallel/zero/stages.py",
        "left = tuple(axis for axis in self.local.axes if axis not in sharded_axes(partition))",
        'left = tuple(axis for axis in self.local.axes if axis not in ("tensor", *sharded_axes(partition)))',
        EQUALS_ONE_DEVICE,
        refused="tensor",
    ),
    Bug(
        "gradients over replicas are averaged, not summed",
        "parallel/zero/stages.py",
        "return lax.psum(gradient.astype(self._reduce), left).astype(jnp.float32)",
        "return lax.pmean(gradient.astype(self._reduce), left).astype(jnp.float32)",
        EQUALS_ONE_DEVICE,
    ),
    Bug(
        "the scatter hands each device its neighbour's shard",
        "parallel/zero/transport.py",
        "dims = summand.shape",
        "dims = summand.shape\n"
        "        summand = jax.numpy.roll(summand, summand.shape[dim] // lax.axis_size(self.axis), dim)",
        EQUALS_ONE_DEVICE,
    ),
    Bug(
        "the scatter runs along the wrong dimension",
        "parallel/zero/transport.py",
        "scatter_dimension=dim",
        "scatter_dimension=summand.ndim - 1 - dim",
        EQUALS_ONE_DEVICE_AT_STAGE_3,
        refused="must be divisible by shard_count",
    ),
    Bug(
        "tensor and data shards lie in the wrong order",
        "parallel/rules.py",
        "tuple(names) if len(names) > 1",
        "tuple(reversed(names)) if len(names) > 1",
        EQUALS_ONE_DEVICE,
    ),
    Bug(
        "the global norm counts what tensor shards hold in common once for each",
        "parallel/zero/stages.py",
        "(lax.psum(total, axes) if axes else total for",
        "(lax.psum(self.local.vary(total), self.local.axes) for",
        EQUALS_ONE_DEVICE,
    ),
    Bug(
        "each device clips by the norm of its own shards",
        "parallel/zero/stages.py",
        "(lax.psum(total, axes) if axes else total for",
        "(total for",
        EQUALS_ONE_DEVICE,
        refused="data",
    ),
    Bug(
        "accumulation divides by the microbatches twice",
        "train/step.py",
        "return total / n_tokens",
        "return total / n_tokens / microbatches",
        EQUALS_ONE_DEVICE_AT_STAGE_3,
    ),
    Bug(
        "accumulation leaves out the first microbatch",
        "train/step.py",
        "total, _ = lax.scan(add, zeros, rows.reshape(microbatches, -1, rows.shape[1]))",
        "total, _ = lax.scan(add, zeros, rows.reshape(microbatches, -1, rows.shape[1])[1:])",
        EQUALS_ONE_DEVICE_AT_STAGE_3,
    ),
    Bug(
        "gradients made in parts come out in the wrong order",
        "model/matmul.py",
        "jnp.concatenate([in_front, kernel.reduce(last)], axis=1)",
        "jnp.concatenate([kernel.reduce(last), in_front], axis=1)",
        ("test_parts", "assert_parts_change_nothing", ()),
    ),
    Bug(
        "a part of the MLP's first matrix has other columns than its second has rows",
        "parallel/zero/weight.py",
        "jnp.moveaxis(by_device, 2, 0)",
        "jnp.moveaxis(leaf.reshape(leaf.shape[0], self.parts, by_device.shape[1], -1), 1, 0)",
        ("test_parts", "assert_parts_of_the_mlp_change_nothing", ()),
    ),
    Bug(
        "the last part of an MLP's gradients comes first",
        "model/mlp.py",
        "jnp.concatenate([stack, x[None]])",
        "jnp.concatenate([x[None], stack])",
        ("test_parts", "assert_parts_of_the_mlp_change_nothing", ()),
    ),
    Bug(
        "an MLP's last part is left out of the sum",
        "model/mlp.py",
        "sum_BTD, last = add(sum_BTD, with_values(cut(-1), values))",
        "_, last = add(sum_BTD, with_values(cut(-1), values))",
        ("test_parts", "assert_parts_of_the_mlp_change_nothing", ()),
    ),
    Bug(
        "the steps of a gather are taken in the order of a scatter's",
        "parallel/zero/transport.py",
        "for groups in self.steps or (None,):",
        "for groups in reversed(self.steps or (None,)):",
        ("test_parts", "assert_steps_change_nothing", ()),
    ),
    Bug(
        "a scatter with the devices apart deals the rows out in turn",
        "parallel/zero/transport.py",
        "devices, -1, *summand.shape[dim + 1 :])",
        "-1, devices, *summand.shape[dim + 1 :]).swapaxes(dim, dim + 1)",
        ("test_parts", "assert_scatters_apart_change_nothing", ()),
    ),
    Bug(
        "stage 2 sends its gradients twice",
        "parallel/zero/weight.py",
        "(how.reduce_scatter(ct.astype(how.compute)), None)",
        "(how.reduce_scatter(ct.astype(how.compute)) / 2 + how.reduce_scatter((ct / 2).astype(how.compute)), None)",
        ("test_traffic", "test_the_volume_is_the_papers", (2, "none")),
    ),
    Bug(
        "the gradient of the output matrix is lost",
        "model/transformer.py",
        "return table.reduce(head_PD.at[",
        "return table.reduce(jnp.zeros_like(head_PD).at[",
        RECIPE,
    ),
    Bug(
        "stage 3 scatters the gradients of its kernels twice",
        "parallel/zero/weight.py",
        "return self.how.reduce_scatter(gradient) if self.partitioned else gradient",
        "return (self.how.reduce_scatter(gradient) + self.how.reduce_scatter(2 * gradient)) / 3",
        ("test_traffic", "test_the_volume_is_the_papers", (3, "none")),
    ),
    Bug(
        "stage 3 keeps gathered weights for the backward pass",
        "parallel/zero/weight.py",
        "return not gathers_weights and",
        "return",
        ("test_traffic", "test_the_volume_is_the_papers", (3, "none")),
    ),
    Bug(
        "unrolled to the last period, nothing recomputes or gathers again",
        "model/transformer.py",
        "prevent_cse=no_loop",
        "prevent_cse=False",
        ("test_traffic", "test_unrolled_to_the_last_block_recomputation_stands_behind_barriers", ()),
    ),
    Bug(
        "weights are gathered in fp32",
        "parallel/zero/weight.py",
        "shard = self.transport.cast(self.transport.stored(shard), self.compute)",
        "shard = self.transport.stored(shard)",
        ("test_traffic", "test_bf16_weights_are_gathered_in_bf16", ()),
    ),
    Bug(
        "every tensor shard brings the positions' embeddings",
        "model/transformer.py",
        "jnp.where(local.tensor_index() == 0, positions_TD, 0)",
        "jnp.where(local.tensor_index() >= 0, positions_TD, 0)",
        EQUALS_ONE_DEVICE,
    ),
    Bug(
        "every tensor shard takes its columns of logits for the first ones",
        "model/loss.py",
        "first = local.tensor_index() * vocab",
        "first = 0 * local.tensor_index()",
        EQUALS_ONE_DEVICE,
    ),
    Bug(
        "the band is one key too wide",
        "model/attention/plain.py",
        "in_band = (key <= query) & (query - key < band)",
        "in_band = (key <= query) & (query - key <= band)",
        ("test_attention", "test_plain_equals_the_definition", (29, 8)),
    ),
    Bug(
        "the band is one key too narrow",
        "model/attention/plain.py",
        "in_band = (key <= query) & (query - key < band)",
        "in_band = (key <= query) & (query - key < band - 1)",
        ("test_attention", "test_plain_equals_the_definition", (29, 8)),
    ),
    Bug(
        "a position sees the next one",
        "model/attention/plain.py",
        "_softmax(scores, (distance >= 0) & (distance < band), q)",
        "_softmax(scores, (distance >= -1) & (distance < band), q)",
        ("test_attention", "test_plain_equals_the_definition", (29, None)),
    ),
    Bug(
        "the band reaches one block of keys less than it touches",
        "model/attention/blockwise.py",
        "min(n_blocks - 1, (band + block - 2) // block)",
        "min(n_blocks - 1, (band - 1) // block)",
        ("test_attention", "test_blockwise_equals_the_definition", (29, 8, 5)),
    ),
    Bug(
        "what was summed under a lower maximum is not rescaled",
        "model/attention/blockwise.py",
        "out = out * rescale[..., None] + seen",
        "out = out + seen",
        ("test_attention", "test_blockwise_equals_the_definition", (29, None, 5)),
    ),
    Bug(
        "the gradient of a query is that of its last key block alone",
        "model/attention/blockwise.py",
        "q_ct = q_ct_NBHKQ[i] + einsum(",
        "q_ct = einsum(",
        ("test_attention", "test_blockwise_equals_the_definition", (29, None, 5)),
    ),
    Bug(
        "masks of all pairs of blocks are computed ahead of the layers, and kept",
        "model/attention/blockwise.py",
        "i, j, _ = lax.optimization_barrier((pairs[:, 0], pairs[:, 1], q_BTHK[0, 0, 0, 0]))",
        "i, j = jnp.asarray(pairs[:, 0]), jnp.asarray(pairs[:, 1])",
        ("test_attention", "test_no_scores_are_kept_whatever_is_recomputed", ("full",)),
    ),
    Bug(
        "generation reads prompts with the attention of a CPU, wherever it runs",
        "model/decode.py",
        "return attention(q_BTHK, k_BTHK, v_BTHK, band, platform)",
        'return attention(q_BTHK, k_BTHK, v_BTHK, band, "cpu")',
        ("test_attention", "test_forward_and_prefill_take_the_platforms_kernel", ("tpu", 2)),
    ),
    Bug(
        "forward takes every platform for a CPU",
        "model/transformer.py",
        "platform = platform or platform_of((params, tokens_BT))",
        'platform = "cpu"',
        ("test_attention", "test_forward_and_prefill_take_the_platforms_kernel", ("tpu", 2)),
    ),
    Bug(
        "the kernel's queries are not scaled",
        "model/attention/splash.py",
        "q = (q.astype(jnp.float32) * width**-0.5).astype(q.dtype)",
        "",
        ("test_attention", "test_splash_equals_the_definition", (100, 80)),
    ),
    Bug(
        "the label of a position is its own token",
        "model/transformer.py",
        "rows_BT1[:, 1:].reshape(-1)",
        "rows_BT1[:, :-1].reshape(-1)",
        RECIPE,
    ),
    Bug(
        "decay applies to biases and LayerNorms",
        "model/params.py",
        "return ParamSpec((layers, *(size for _, size in dims)), axes, zero, value, constant=True)",
        "return ParamSpec((layers, *(size for _, size in dims)), axes, zero, value, constant=True, decay=True)",
        RECIPE,
    ),
    Bug(
        "the learning rate goes by steps, not tokens",
        "train/step.py",
        "rate = schedule(sequences.astype(jnp.float32) * config.model.n_ctx)",
        "rate = schedule(state.step)",
        RECIPE,
    ),
    Bug(
        "the learning rate is that of the tokens before this batch",
        "train/step.py",
        "rate = schedule(sequences.astype(jnp.float32) * config.model.n_ctx)",
        "rate = schedule(state.sequences.astype(jnp.float32) * config.model.n_ctx)",
        RECIPE,
    ),
    Bug(
        "the padding of the vocabulary gets probability",
        "model/cpu.py",
        "jnp.full_like(logits_CV[:, :padding], masked), n_vocab, axis=1)",
        "logits_CV[:, n_vocab:], n_vocab, axis=1)",
        ("test_step", "test_the_padding_of_the_vocabulary_never_trains", ()),
    ),
    Bug(
        "an update that is not finite is made",
        "train/step.py",
        "lambda new, old: jnp.where(finite, new, old)",
        "lambda new, old: new",
        ("test_step", "test_an_update_that_is_not_finite_is_left_out", ()),
    ),
    Bug(
        "the state is not donated",
        "train/step.py",
        "return jax.jit(sharded, donate_argnums=0, out_shardings=out_shardings,",
        "return jax.jit(sharded, out_shardings=out_shardings,",
        ("test_step", "test_the_state_is_donated_and_nothing_crosses_to_the_host", ()),
    ),
    Bug(
        "residual projections start unscaled",
        "model/params.py",
        '{"2L": (2 * layers) ** -0.5, "L": layers**-0.5, "none": 1.0}[config.residual_init]',
        "1.0",
        ("test_model", "test_initial_values_have_the_statistics_of_gpt2", ("2L", 16**-0.5)),
    ),
)
