"""Whether this machine's GPU computes what the project says: against plain attention, against the CPU, against itself.

Each check runs at two scales. `tiny` belongs to the default suite and compares the CPU with itself: it shows that the
checks run, and that their controls fail. `gpu` is run by `pytest -m gpu -n 0`, on JAX's first GPU. Figures are recorded
as properties of the test (`--junitxml`); `launch/prove-gpu.sh` makes a table of them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt3_jax import model
from gpt3_jax.config import Config, MemoryConfig, ModelConfig, OptimizerConfig, ParallelConfig, TrainConfig
from gpt3_jax.model.attention import choose
from gpt3_jax.model.attention.blockwise import blockwise
from gpt3_jax.model.attention.cudnn import cudnn
from gpt3_jax.model.attention.plain import plain
from gpt3_jax.parallel.mesh import make_mesh, mesh_platform
from gpt3_jax.parallel.rules import batch_partition, shardings
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.state import TrainState, abstract_state, create, state_shardings
from gpt3_jax.train.step import make_step

Record = Callable[[str, object], None]


@dataclasses.dataclass(frozen=True)
class Scale:
    """The sizes of all checks."""

    platform: str
    attention: tuple[int, int]
    """Length and band of the attention that is checked alone."""
    model: ModelConfig
    """Of the training step, of decoding and of the checkpoint; in fp32."""


TINY = Scale(
    "cpu",
    (96, 16),
    ModelConfig(n_layers=2, d_model=32, n_heads=4, n_ctx=32, n_vocab=101, vocab_multiple=64, band_width=8,
                init_std=0.05, dtype="float32"),
)  # fmt: skip
GPU = Scale(
    "gpu",
    (2048, 256),
    ModelConfig(n_layers=4, d_model=512, n_heads=8, n_ctx=512, n_vocab=1000, vocab_multiple=64, band_width=128,
                init_std=0.05, dtype="float32"),
)  # fmt: skip
SCALES = (pytest.param(TINY, id="tiny"), pytest.param(GPU, id="gpu", marks=pytest.mark.gpu))
DTYPES = (
    pytest.param(TINY, "float32", id="tiny-float32"),
    *(pytest.param(GPU, dtype, id=f"gpu-{dtype}", marks=pytest.mark.gpu) for dtype in ("float32", "bfloat16")),
)
HEADS = (
    pytest.param(TINY, 8, id="tiny-8"),
    *(pytest.param(GPU, width, id=f"gpu-{width}", marks=pytest.mark.gpu) for width in (64, 80, 96, 128)),
)
"""Widths of a head: those of the paper's models, which cuDNN has kernels for."""
LIMITS = {"loss": 1e-5, "norm": 1e-4, "update": 1e-3}
"""What rounding may make of two steps in fp32; see `far`."""


@pytest.fixture
def device(scale: Scale) -> jax.Device:
    """The device that is checked. Of several CPU devices not the first, which is what it is compared with."""
    found = jax.devices()[-1 if scale.platform == "cpu" else 0]
    if found.platform != scale.platform:
        pytest.skip(f"JAX has no GPU here but {found}")
    return found


def noted(record: Record, **figures: object) -> None:
    for name, value in figures.items():
        record(name.replace("_", " "), json.dumps(value, default=float))


def same_bits(a: Any, b: Any) -> bool:
    pairs = zip(*map(jax.tree.leaves, (a, b)), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


# -- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "banded"])
@pytest.mark.parametrize(("scale", "width"), HEADS)
def test_the_fused_kernel_is_attention(
    scale: Scale, width: int, kind: str, device: jax.Device, record_property: Record
) -> None:
    """Output and gradients in bf16 against plain attention in fp32, relative to their norms: no farther than plain
    attention in bf16 comes, within a factor of two. The control: a band that is wrong by one position (of dense
    attention, a band at all)."""
    length, band_width = scale.attention
    band = None if kind == "dense" else band_width
    shape = (2, length, 4, width)
    on_gpu = scale.platform == "gpu"
    taken = choose(shape, jnp.dtype(jnp.bfloat16), band, mesh_platform(make_mesh(ParallelConfig(data=1), [device])))
    fused = cudnn if on_gpu else blockwise

    def run(attention: Callable[..., jax.Array], band: int | None, inputs: list[jax.Array]) -> tuple[jax.Array, ...]:
        *qkv, ct = inputs
        out, pull = jax.vjp(lambda *qkv: attention(*qkv, band), *qkv)
        return out, *pull(ct)

    @jax.jit
    def errors(inputs: list[jax.Array]) -> list[jax.Array]:
        whole = [x.astype(jnp.float32) for x in inputs]
        exact = run(plain, band, whole)
        wrong = run(plain, length // 2 if band is None else band - 1, whole)

        def error(found: tuple[jax.Array, ...]) -> jax.Array:
            pairs = zip(found, exact, strict=True)
            return jnp.stack([jnp.linalg.norm((x - y).ravel()) / jnp.linalg.norm(y.ravel()) for x, y in pairs])

        return [error(run(fused, band, inputs)), error(run(plain, band, inputs)), error(wrong)]

    inputs = list(jax.device_put(jax.random.normal(jax.random.key(width), (4, *shape), jnp.bfloat16), device))
    found, rounding, control = map(np.asarray, errors(inputs))
    noted(
        record_property,
        takes=taken,
        error_of_out_dq_dk_dv=found.tolist(),
        plain_in_bf16=rounding.tolist(),
        control=control.tolist(),
    )
    limit = np.minimum(1e-2, 2 * rounding + 1e-4)
    assert taken == "cudnn" or not on_gpu
    assert (found < limit).all(), f"relative errors of out, dq, dk, dv: {found}; at most {limit}"
    assert (control > limit).all(), f"the wrong band is not seen: {control} within {limit}"


# -- the training step ---------------------------------------------------------------------------------------------


class Steps(NamedTuple):
    """What two steps gave."""

    told: np.ndarray
    """Losses and gradient norms, [2, steps]."""
    params: Any


def settings(architecture: ModelConfig, stage: int = 1) -> Config:
    return Config(
        model=architecture,
        # eps far above rounding: at 1e-8, Adam turns the noise of gradients that are zero into whole updates.
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_tokens=0, eps=1e-3),
        train=TrainConfig(batch_tokens=8 * architecture.n_ctx),
        memory=MemoryConfig(microbatch=4, remat="full", loss_chunk=1000),
        parallel=ParallelConfig(stage=stage, data=1),  # type: ignore[arg-type]
    )


@functools.cache
def first_state(scale: Scale) -> Any:
    """In numpy, made on the CPU: the same for every program."""
    with jax.default_device(jax.devices("cpu")[0]):
        return jax.device_get(jax.jit(create, static_argnums=0)(settings(scale.model)))


DETERMINISTIC: dict[str, str | bool] = {
    "xla_gpu_exclude_nondeterministic_ops": True,
    "xla_gpu_enable_triton_gemm": False,
}
"""The first leaves no matmul of Triton's: the compiler has to know."""


class Program:
    """The step that `train` runs, on one device: two microbatches of four sequences.

    Args:
        narrower: takes so many positions off the band; the parameters are the same.
        deterministic: compiled without nondeterministic operations.
    """

    def __init__(
        self, scale: Scale, device: jax.Device, stage: int, dtype: str, narrower: int = 0, deterministic: bool = False
    ) -> None:
        changed: dict[str, Any] = {"dtype": dtype, "band_width": scale.model.band_width - narrower}
        self.scale, self.config = scale, settings(dataclasses.replace(scale.model, **changed), stage)
        self.mesh = make_mesh(self.config.parallel, [device])
        rows = np.random.default_rng(0).integers(0, self.config.model.n_vocab, (2, 8, self.config.model.n_ctx + 1))
        skewed = np.where(rows % 3 == 0, rows % 7, rows).astype(np.int32)  # some tokens far more frequent than others
        self.batches = [jax.device_put(batch, shardings(batch_partition(self.mesh), self.mesh)) for batch in skewed]
        lowered = make_step(self.config, self.mesh, 2).lower(self.first(), self.batches[0])
        self.step = lowered.compile(DETERMINISTIC) if deterministic else lowered.compile()

    def first(self) -> TrainState:
        placed: TrainState = jax.device_put(first_state(self.scale), state_shardings(self.config, self.mesh))
        return placed

    def run(self) -> Steps:
        state, told = self.first(), []
        for rows in self.batches:
            state, metrics = self.step(state, rows)
            told.append((float(metrics.loss), float(metrics.grad_norm)))
        return Steps(np.array(told).T, jax.device_get(state.params))


program = functools.cache(Program)


@functools.cache
def on_the_cpu(scale: Scale, dtype: str) -> Steps:
    return Program(scale, jax.devices("cpu")[0], 1, dtype).run()


def far(found: Steps, wanted: Steps, scale: Scale) -> dict[str, float]:
    """Relative: the largest difference of losses and of gradient norms; and how far the parameters lie apart, as a part
    of how far they moved."""
    loss, norm = np.abs(found.told / wanted.told - 1).max(axis=1)
    trees = (found.params, wanted.params, first_state(scale).params)
    a, b, start = (np.concatenate([np.float64(leaf).ravel() for leaf in jax.tree.leaves(tree)]) for tree in trees)
    update = np.linalg.norm(a - b) / np.linalg.norm(b - start)
    return {"loss": float(loss), "norm": float(norm), "update": float(update)}


def limits(scale: Scale, dtype: str) -> dict[str, float]:
    """In bf16 what the CPU's own rounding makes, twice."""
    if dtype == "float32":
        return LIMITS
    rounding = far(on_the_cpu(scale, "bfloat16"), on_the_cpu(scale, "float32"), scale)
    return {name: 2 * rounding[name] + 2e-3 for name in LIMITS}


def within(found: dict[str, float], limits: dict[str, float]) -> bool:
    return all(found[name] < limits[name] for name in limits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", SCALES)
def test_two_training_steps_are_the_cpus_in_fp32(
    scale: Scale, dtype: str, device: jax.Device, record_property: Record
) -> None:
    """The control, in fp32: a band that is one position too narrow."""
    checked = program(scale, device, 1, dtype, deterministic=False)
    first, again = checked.run(), checked.run()
    exact, most = on_the_cpu(scale, "float32"), limits(scale, dtype)
    found = far(first, exact, scale)
    noted(record_property, **found, at_most=most, same_bits_again=same_bits(first, again))
    if dtype == "float32":
        control = far(Program(scale, device, 1, dtype, narrower=1).run(), exact, scale)
        noted(record_property, control=control)
        assert not within(control, most), f"a band that is too narrow is not seen: {control} within {most}"
    assert within(found, most), f"{found}; at most {most}"


@pytest.mark.parametrize(("scale", "dtype"), DTYPES)
def test_zero_stages_1_and_3_train_alike(scale: Scale, dtype: str, device: jax.Device, record_property: Record) -> None:
    """Without nondeterministic operations, where that compiles. Bits may differ (two programs, fused and tuned on their
    own); whether they do is recorded."""
    deterministic = scale.platform == "gpu"
    try:
        one, three = (program(scale, device, stage, dtype, deterministic=deterministic) for stage in (1, 3))
    except jax.errors.JaxRuntimeError:
        if not deterministic:
            raise
        deterministic = False
        one, three = (program(scale, device, stage, dtype, deterministic=False) for stage in (1, 3))
    first, again, other = one.run(), one.run(), three.run()
    found, most = far(other, first, scale), limits(scale, dtype)
    noted(
        record_property,
        **found,
        same_bits=same_bits(first, other),
        same_bits_again=same_bits(first, again),
        deterministic=deterministic,
    )
    assert within(found, most), f"{found}; at most {most}"


# -- generation and checkpoints ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scale", "dtype"), DTYPES)
def test_cached_decoding_is_the_forward_pass(
    scale: Scale, dtype: str, device: jax.Device, record_property: Record
) -> None:
    """From half of the context to its end, past the end of the band's ring. The control: logits of the position
    before."""
    exact_config = dataclasses.replace(scale.model, n_layers=2)
    config = dataclasses.replace(exact_config, dtype=dtype)  # type: ignore[arg-type]
    platform = mesh_platform(make_mesh(ParallelConfig(data=1), [device]))
    with jax.default_device(device):
        params = jax.jit(model.init, static_argnums=0)(config, jax.random.key(0))
        tokens = jax.random.randint(jax.random.key(1), (3, config.n_ctx), 0, config.n_vocab)
        forward = jax.jit(model.forward, static_argnums=(2, 3))
        step = jax.jit(model.decode_step, static_argnums=(3, 4), donate_argnums=1)
        exact = np.asarray(forward(params, tokens, exact_config, platform))
        whole = np.asarray(forward(params, tokens, config, platform))
        weights, prompt, found, control = model.decode_weights(params, config), config.n_ctx // 2, 0.0, 0.0
        logits, cache = model.prefill(weights, tokens[:, :prompt], jnp.full(3, prompt), config, platform=platform)
        for t in range(prompt, config.n_ctx):
            found = max(found, np.abs(np.asarray(logits) - whole[:, t - 1]).max())
            control = max(control, np.abs(np.asarray(logits) - whole[:, t - 2]).max())
            logits, cache = step(weights, cache, tokens[:, t], config, platform)
    most = 1e-4 * np.abs(exact).max() if dtype == "float32" else 2 * np.abs(whole - exact).max()
    noted(record_property, largest_difference=found, at_most=most, control=control)
    assert found <= most
    assert control > most, f"the position before is not told apart: {control}"


@pytest.mark.parametrize("scale", SCALES)
def test_a_checkpoint_comes_back_to_the_device_bit_by_bit(
    scale: Scale, device: jax.Device, tmp_path: Path, record_property: Record
) -> None:
    """The control: a state with one other bit."""
    config = settings(scale.model)
    mesh = make_mesh(config.parallel, [device])
    state = jax.device_put(first_state(scale), state_shardings(config, mesh))
    store = CheckpointStore(tmp_path, keep_last=1, keep_every_tokens=0)
    store.save(1, 1, state, {}, wait=True)
    store.close()
    restored = CheckpointReader(tmp_path).restore(abstract_state(config, mesh))
    assert restored is not None
    there = all(leaf.devices() == {device} for leaf in jax.tree.leaves(restored.state))
    ok = same_bits(restored.state, state)
    noted(record_property, on_the_device=there, same_bits=ok)
    assert there and ok
    leaf, *others = jax.tree.leaves(state)
    changed = np.array(leaf)
    changed.reshape(-1).view(np.uint8)[0] ^= 1
    assert not same_bits([changed, *others], restored.state)
