"""Attention: every implementation against its definition, in values and gradients, and what each of them computes."""

from __future__ import annotations

import functools
import itertools
from types import SimpleNamespace
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from jaxprs import dot_flops, equations

from gpt3_jax import model
from gpt3_jax.config import ModelConfig, load_config
from gpt3_jax.model.attention import attention, choose
from gpt3_jax.model.attention.blockwise import block_size, blockwise, visited_blocks
from gpt3_jax.model.attention.by_head import by_head
from gpt3_jax.model.attention.plain import plain, score_bytes
from gpt3_jax.model.attention.splash import splash
from gpt3_jax.model.attention.triangle import triangle
from gpt3_jax.model.decode import decode_weights, prefill
from gpt3_jax.model.remat import Remat
from gpt3_jax.model.transformer import loss_sum, plain_weights
from gpt3_jax.parallel.collectives import Local
from gpt3_jax.parallel.mesh import mesh_platform, platform_of

BAND = 8
blockwise_by_4 = functools.partial(blockwise, block=4)
splash_interpreted = functools.partial(splash, interpret=True)


def definition(q: jax.Array, k: jax.Array, v: jax.Array, band: int | None) -> jax.Array:
    """Attention as the definition says it: all scores, then a mask."""
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k) / np.sqrt(q.shape[-1])
    back = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    visible = (back >= 0) & (back < (band or q.shape[1]))
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1), v)


def qkv(length: int, width: int = 4, dtype: Any = jnp.float32, heads: int = 3) -> tuple[jax.Array, ...]:
    return tuple(jax.random.normal(jax.random.key(0), (3, 2, length, heads, width), dtype))


def output_and_gradients(function: Any, band: int | None, *inputs: jax.Array) -> tuple[jax.Array, ...]:
    """Of queries, keys and values, for a cotangent that weights no two outputs alike."""
    cotangent = jax.random.normal(jax.random.key(1), inputs[0].shape, inputs[0].dtype)
    out, pull = jax.vjp(lambda *qkv: function(*qkv, band), *inputs)
    return out, *pull(cotangent)


def run(function: Any, *inputs: jax.Array) -> Any:
    """Compiled without LLVM's optimizations, which take longer than they save."""
    return jax.jit(function).lower(*inputs).compile({"xla_backend_optimization_level": "0"})(*inputs)


def assert_like_the_definition(
    function: Any, band: int | None, inputs: tuple[jax.Array, ...], within: float = 1e-5
) -> None:
    found, expected = (
        run(functools.partial(output_and_gradients, how, band), *inputs) for how in (function, definition)
    )
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=within, atol=within * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize(
    ("length", "band"),
    [
        *itertools.product((1, BAND, 3 * BAND + 5), (None, 1)),
        *itertools.product((1, BAND - 1, BAND, BAND + 1, 3 * BAND, 3 * BAND + 5), (BAND,)),
    ],
)
def test_plain_equals_the_definition(length: int, band: int | None) -> None:
    assert_like_the_definition(plain, band, qkv(length))


@pytest.mark.parametrize(
    ("length", "band", "block"),
    [(29, None, 5), (29, BAND, 5), (29, 1, BAND), (29, BAND + 1, BAND), (29, BAND, 64), (24, None, BAND), (1, None, 1)],
)
def test_blockwise_equals_the_definition(length: int, band: int | None, block: int) -> None:
    assert_like_the_definition(functools.partial(blockwise, block=block), band, qkv(length))


@pytest.mark.parametrize("heads_at_once", [1, 2, 6])
@pytest.mark.parametrize(("length", "band", "block"), [(29, None, 5), (29, BAND, 5), (29, 1, BAND), (24, None, BAND)])
def test_triangle_equals_the_definition(length: int, band: int | None, block: int, heads_at_once: int) -> None:
    """In values; no gradient is taken of it."""
    inputs = qkv(length, heads=6)
    ours = functools.partial(triangle, block=block, score_bytes=heads_at_once * 4 * block * length)
    found, expected = (run(functools.partial(how, band=band), *inputs) for how in (ours, definition))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_triangle_computes_few_scores_above_the_diagonal() -> None:
    inputs = qkv(512)
    found, all_scores = (dot_flops(functools.partial(how, band=None), *inputs) for how in (triangle, plain))
    assert found == 5 / 8 * all_scores


@pytest.mark.parametrize(
    ("length", "band", "block", "group"),
    [
        (29, None, 5, 1),
        (29, BAND, 5, 4),
        (200, 70, 64, 3),
        (200, 1, 32, 2),
        (29, BAND, 64, None),
        (1, None, None, None),
    ],
)
def test_by_head_equals_the_definition(length: int, band: int | None, block: int | None, group: int | None) -> None:
    assert_like_the_definition(functools.partial(by_head, block=block, group=group), band, qkv(length))


@pytest.mark.parametrize("block", [5, 64])
@pytest.mark.parametrize("function", [blockwise, by_head])
def test_blocks_hold_scores_of_any_size(function: Any, block: int) -> None:
    """Scores of hundreds, whose exponentials overflow fp32 unless each row's maximum is taken off."""
    q, k, v = qkv(3 * BAND)
    assert_like_the_definition(functools.partial(function, block=block), None, (30 * q, 30 * k, v), within=1e-4)


@pytest.mark.parametrize(("band", "width"), [(None, 64), (100, 80), (128, 96)])
def test_splash_equals_the_definition(band: int | None, width: int) -> None:
    assert_like_the_definition(splash_interpreted, band, qkv(384, width, heads=2))


@functools.cache
def in_fp32(band: int | None) -> tuple[jax.Array, ...]:
    """Of the same bf16 inputs as `rounding`."""
    inputs = (x.astype(jnp.float32) for x in qkv(128, 64, jnp.bfloat16))
    exact: tuple[jax.Array, ...] = run(functools.partial(output_and_gradients, plain, band), *inputs)
    return exact


@functools.cache
def rounding(function: Any, band: int | None) -> list[float]:
    """Relative error of the output and of each gradient in bf16, that of the rounded operands included."""
    found = run(functools.partial(output_and_gradients, function, band), *qkv(128, 64, jnp.bfloat16))
    assert all(x.dtype == jnp.bfloat16 for x in found)
    pairs = zip(found, in_fp32(band), strict=True)
    return [float(jnp.linalg.norm(x - y) / jnp.linalg.norm(y)) for x, y in pairs]


@pytest.mark.parametrize(
    "function",
    [blockwise_by_4, functools.partial(blockwise, block=128), functools.partial(by_head, block=32), splash_interpreted],
)
@pytest.mark.parametrize("band", [None, 100])
def test_bf16_rounds_no_more_than_plain_does(function: Any, band: int | None) -> None:
    """The error against fp32 is that of `plain` or close to it."""
    np.testing.assert_array_less(rounding(function, band), 1.25 * np.array(rounding(plain, band)))


def four_rows() -> tuple[jax.Array, ...]:
    return tuple(jax.random.normal(jax.random.key(0), (3, 4, 128, 2, 8)))


@functools.cache
def defined() -> tuple[jax.Array, ...]:
    found: tuple[jax.Array, ...] = run(functools.partial(output_and_gradients, definition, 100), *four_rows())
    return found


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "function",
    [functools.partial(blockwise, block=32), functools.partial(by_head, block=32), splash_interpreted, plain],
)
def test_within_a_shard_map_that_checks_its_types(function: Any, shape: tuple[int, ...]) -> None:
    """As in the step: batch over two axes, heads over the third, recomputed in the backward pass."""
    devices = jax.devices()[: int(np.prod(shape))]
    mesh = jax.make_mesh(shape, ("x", "y", "z"), axis_types=(AxisType.Auto,) * 3, devices=devices)
    inputs = four_rows()

    def rematerialised(*qkv_and_band: Any) -> jax.Array:
        return jax.checkpoint(function, static_argnums=3)(*qkv_and_band)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, ct: jax.Array) -> tuple[jax.Array, ...]:
        out, pull = jax.vjp(lambda *x: rematerialised(*x, 100), q, k, v)
        return out, *pull(ct)

    partition = PartitionSpec(("x", "y"), None, "z")
    cotangent = jax.random.normal(jax.random.key(1), inputs[0].shape)
    sharded = jax.shard_map(local, mesh=mesh, in_specs=partition, out_specs=partition)
    found = run(sharded, *inputs, cotangent)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, defined())


@pytest.mark.parametrize("band", [None, BAND])
@pytest.mark.parametrize("function", [plain, blockwise_by_4])
def test_output_t_depends_on_its_band_and_on_nothing_else(function: Any, band: int | None) -> None:
    length = 3 * BAND + 5
    q, k, v = qkv(length)
    # [T, S]: how much value s moves output t (head 0), and how much key s does.
    by_value = run(jax.jacobian(lambda v: function(q, k, v, band)[0, :, 0, 0]), v)[:, 0, :, 0, 0]
    by_key = jnp.abs(run(jax.jacobian(lambda k: function(q, k, v, band)[0, :, 0, 0]), k)[:, 0, :, 0]).sum(-1)
    back = np.arange(length)[:, None] - np.arange(length)
    inside = (back >= 0) & (back < (band or length))
    np.testing.assert_array_equal(by_value != 0, inside)
    inside[0, 0] = False  # the only key that a position sees has weight 1 whatever it is
    np.testing.assert_array_equal(by_key != 0, inside)


def test_what_lies_outside_the_band_is_not_computed_by_plain() -> None:
    def flops(length: int, band: int | None) -> int:
        def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return plain(q, k, v, band).sum()

        return dot_flops(jax.grad(loss, argnums=(0, 1, 2)), *qkv(length))

    assert flops(512, None) == 4 * flops(256, None)
    assert flops(512, BAND) == 2 * flops(256, BAND)
    # Two blocks of keys for each query, against all of them.
    assert flops(512, BAND) * 512 == flops(512, None) * 2 * BAND


@pytest.mark.parametrize("band", [None, 1, 2, BAND, BAND + 1, BAND + 2, 63])
def test_blockwise_visits_the_blocks_with_a_visible_key_and_no_other(band: int | None) -> None:
    for length, block in itertools.product((1, 16, 63, 64), (1, 7, BAND, 16, 100)):
        n_blocks = -(-length // block)
        positions = np.arange(n_blocks * block)
        back = positions[:, None] - positions
        visible = (back >= 0) & (back < (band or len(positions)))
        touched = visible.reshape(n_blocks, block, n_blocks, block).any(axis=(1, 3))
        visited = visited_blocks(length, band, block)
        assert sorted(visited.tolist()) == np.argwhere(touched).tolist(), (length, block)


@pytest.mark.parametrize("band", [None, 256])
def test_blockwise_computes_what_it_visits(band: int | None) -> None:
    """From the jaxpr, for the paper's context: as many steps as blocks, two matmuls forward and five backward."""
    length, heads, width = 2048, 2, 64
    inputs = [jax.ShapeDtypeStruct((1, length, heads, width), jnp.bfloat16)] * 3
    block = block_size(length, band)
    pairs = len(visited_blocks(length, band, block))
    assert pairs == (10 if band is None else 15)
    one_matmul = 2 * heads * block**2 * width
    assert dot_flops(lambda q, k, v: blockwise(q, k, v, band), *inputs) == 2 * pairs * one_matmul
    gradients = functools.partial(output_and_gradients, blockwise, band)
    assert dot_flops(gradients, *inputs) == (2 + 5) * pairs * one_matmul
    lengths = [
        e.params["length"] for e, _ in equations(jax.make_jaxpr(gradients)(*inputs).jaxpr) if "length" in e.params
    ]
    assert lengths == [pairs, pairs]


@pytest.mark.parametrize("length", [2048, 16384])
def test_the_program_of_blockwise_does_not_grow_with_the_context(length: int) -> None:
    def size(length: int) -> int:
        inputs = [jax.ShapeDtypeStruct((1, length, 2, 64), jnp.bfloat16)] * 3
        program = jax.make_jaxpr(functools.partial(output_and_gradients, blockwise, None))(*inputs)
        return sum(1 for _ in equations(program.jaxpr))

    assert size(length) == size(1024)


@pytest.mark.parametrize("remat", get_args(Remat))
def test_no_scores_are_kept_whatever_is_recomputed(remat: Any) -> None:
    """In the whole model's gradient nothing is larger than the scores of one pair of blocks."""
    config = ModelConfig(
        n_layers=2, d_model=16, n_heads=2, n_ctx=2048, n_vocab=61, vocab_multiple=1, band_width=256, dtype="float32"
    )
    assert choose((1, 2048, 2, 8), jnp.dtype("float32"), None, "tpu") == "blockwise"
    params = jax.eval_shape(functools.partial(model.init, config), jax.random.key(0))

    def loss(params: Any, rows: jax.Array) -> jax.Array:
        return loss_sum(plain_weights(params, "float32"), rows, config, Local(platform="tpu"), remat, 256)

    program = jax.make_jaxpr(jax.grad(loss))(params, jax.ShapeDtypeStruct((1, 2049), jnp.int32))
    sizes = [(out.aval.size, out.aval.shape) for e, _ in equations(program.jaxpr) for out in e.outvars]
    assert max(sizes) == (2 * 512**2, (1, 2, 512, 512))


def test_which_implementation_where() -> None:
    bf16, fp32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
    paper = (1, 2048, 16, 128)
    for width in (64, 80, 96, 128):
        assert choose((8, 2048, 12, width), bf16, 256, "tpu") == "splash"
        assert choose((8, 2048, 12, width), bf16, None, "gpu") == "cudnn"
    assert choose(paper, fp32, None, "tpu") == choose(paper, fp32, 256, "gpu") == "blockwise"
    assert choose((1, 2000, 16, 128), bf16, None, "tpu") == "blockwise"  # no multiple of the kernel's 128 positions
    assert choose((1, 2048, 16, 132), bf16, None, "gpu") == "blockwise"
    assert choose(paper, fp32, None, "cpu") == "blockwise" and choose(paper, bf16, None, "cpu") == "by_head"
    amd = SimpleNamespace(platform="gpu", client=SimpleNamespace(platform_version="PJRT C API\nrocm 70000"))
    nvidia = SimpleNamespace(platform="gpu", client=SimpleNamespace(platform_version="PJRT C API\ncuda 13000"))
    for device, expected in ((amd, "blockwise"), (nvidia, "cudnn"), (SimpleNamespace(platform="gpu"), "cudnn")):
        platform = mesh_platform(cast(Mesh, SimpleNamespace(devices=np.array([[[device]]]))))
        assert choose(paper, bf16, None, platform) == expected
    assert choose((4, 256, 2, 64), fp32, None, "gpu") == "blockwise"


@pytest.mark.parametrize("name", ["quickstart", "shakespeare"])
def test_small_models_keep_plain_on_cpu(name: str) -> None:
    config = load_config([name], [])
    shape = (config.train.batch_tokens // config.model.n_ctx, config.model.n_ctx, config.model.n_heads, 64)
    for band in (None, config.model.band_width):
        assert choose(shape, jnp.dtype(config.model.dtype), band, "cpu") == "plain"


@pytest.mark.parametrize(("length", "band"), [(64, None), (64, BAND), (61, BAND), (16, BAND), (17, BAND)])
def test_score_bytes_are_those_of_plain(length: int, band: int | None) -> None:
    inputs = qkv(length)
    program = jax.make_jaxpr(lambda q, k, v: plain(q, k, v, band))(*inputs)
    scores = [e.outvars[0].aval for e, _ in equations(program.jaxpr) if e.primitive.name == "exp"]
    assert [s.size * s.dtype.itemsize for s in scores] == [score_bytes(inputs[0].shape, band)]


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_attention_runs_what_it_chose(platform: str) -> None:
    """A band longer than the context is no band; operations carry the name that profiles attribute them by."""
    q, k, v = inputs = qkv(3 * BAND)
    assert choose(inputs[0].shape, inputs[0].dtype, BAND, platform) == ("plain" if platform == "cpu" else "blockwise")
    for band in (BAND, 1000):
        found = attention(q, k, v, band, platform)
        np.testing.assert_allclose(found, definition(q, k, v, band), atol=1e-5)
    program = jax.jit(lambda q, k, v: attention(q, k, v, BAND, platform)).lower(*inputs)
    has_loop = "stablehlo.while" in program.as_text()
    assert has_loop == (platform == "tpu")
    assert "attention/" in program.as_text(debug_info=True)


MODEL = ModelConfig(n_layers=2, d_model=128, n_heads=2, n_ctx=128, n_vocab=61, band_width=64)


@pytest.mark.parametrize(("platform", "kernels"), [("cpu", 0), ("tpu", MODEL.n_layers)])
def test_forward_and_prefill_take_the_platforms_kernel(platform: str, kernels: int) -> None:
    """Lowered for the platform; tests/test_attention_compiles.py compiles them, for GPUs too."""
    params = model.init(MODEL, jax.random.key(0))
    inputs = params, jnp.zeros((2, 128), jnp.int32), jnp.full(2, 128, jnp.int32)

    def read(params: Any, tokens: jax.Array, lengths: jax.Array) -> Any:
        return prefill(decode_weights(params, MODEL), tokens, lengths, MODEL, Local(platform))

    def all_logits(params: Any, tokens: jax.Array, lengths: jax.Array) -> Any:
        return model.forward(params, tokens, MODEL, platform)

    for function in (read, all_logits):
        text = jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,)).as_text()
        assert text.count("@tpu_custom_call") == kernels


def test_forward_finds_the_platform_of_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    params, tokens = model.init(MODEL, jax.random.key(0)), jnp.zeros((1, 128), jnp.int32)
    assert platform_of((params, tokens)) == "cpu"

    def chosen(*args: Any) -> str:
        asked.append(args[-1])
        return "plain"

    monkeypatch.setattr("gpt3_jax.model.attention.choose", chosen)
    monkeypatch.setattr(jax, "devices", lambda *_: [SimpleNamespace(platform="tpu")])  # the default device
    for expected, read in (
        ("cpu", lambda: model.forward(params, tokens, MODEL)),
        ("tpu", lambda: jax.eval_shape(lambda p, t: model.forward(p, t, MODEL), params, tokens)),
        ("gpu", lambda: model.forward(params, tokens, MODEL, "gpu")),
    ):
        asked: list[str] = []
        read()
        assert set(asked) == {expected}
