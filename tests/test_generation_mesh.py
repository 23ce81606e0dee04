"""Generation over a mesh of eight fake devices gives what one device gives, from weights in whatever place."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from gpt3_jax import model
from gpt3_jax.config import ModelConfig, ParallelConfig
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import UserError
from gpt3_jax.generation import Beam, Decoding, Generator, Greedy, Sample
from gpt3_jax.inference import generate as programs
from gpt3_jax.inference import lengths
from gpt3_jax.inference.placed import place_weights
from gpt3_jax.model.decode import Cache
from gpt3_jax.model.params import Params, param_table
from gpt3_jax.model.stored import contracted, quantise, stores
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.parallel.rules import shardings
from gpt3_jax.parallel.zero import parameter_partitions
from gpt3_jax.program.traffic import count

# The vocabulary's padding fills a tensor shard; one head a device at tensor 8.
CONFIG = ModelConfig(
    n_layers=2,
    d_model=64,
    n_heads=8,
    n_ctx=40,
    n_vocab=257,
    vocab_multiple=64,
    band_width=8,
    init_std=0.3,
    dtype="float32",
)
MESHES = ((1, 8, 1), (2, 2, 2), (1, 1, 8))
PROMPTS = ["a", "the quick brown", "GPT", "0123456789", "ü"]  # five rows: no mesh divides them
DECODINGS: dict[str, Decoding] = {
    "greedy": Greedy(),
    "sampling": Sample(0.9, 40, 0.95, seed=3),
    "beams": Beam(width=3, penalty="power"),
}


def mesh_of(shape: tuple[int, int, int]) -> Mesh:
    return make_mesh(ParallelConfig(replica=shape[0], data=shape[1], tensor=shape[2]))


@functools.cache
def params() -> Params:
    """Random values everywhere: a bias that tensor shards add twice must show."""
    made = jax.jit(model.init, static_argnums=0)(CONFIG, jax.random.key(0))
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(made))))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jax.random.normal(next(keys), leaf.shape), made)


@functools.cache
def generator(shape: tuple[int, int, int] | None, dtype: str = "float32") -> Generator:
    config = dataclasses.replace(CONFIG, dtype=dtype)  # type: ignore[arg-type]
    return Generator(params(), config, ByteTokenizer(), None if shape is None else mesh_of(shape))


@functools.cache
def completed(shape: tuple[int, int, int] | None, decoding: str, dtype: str = "float32") -> dict[int, Any]:
    prompts = [list(prompt.encode()) for prompt in PROMPTS]
    return dict(generator(shape, dtype).complete(prompts, (), 12, DECODINGS[decoding]))


def assert_like_one_device(shape: tuple[int, int, int], decoding: str) -> None:
    one, found = completed(None, decoding), completed(shape, decoding)
    assert found.keys() == one.keys() == set(range(len(PROMPTS)))
    assert len({answer.text for answer in one.values()}) == len(PROMPTS)
    for i, answer in one.items():
        assert found[i].logprob == pytest.approx(answer.logprob, abs=1e-4)
        assert dataclasses.replace(found[i], logprob=answer.logprob) == answer


@pytest.mark.parametrize(("shape", "decoding"), list(itertools.product(MESHES, DECODINGS)), ids=str)
def test_a_mesh_generates_what_one_device_does(shape: tuple[int, int, int], decoding: str) -> None:
    assert_like_one_device(shape, decoding)


def test_caches_grow_over_a_mesh_as_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """From 32 tokens, which the prompts are read into, to 40."""
    monkeypatch.setattr(lengths, "_SHORTEST_CACHE", 8)
    grown: list[int] = []
    grow = programs.grow

    def counted(cache: Cache, config: ModelConfig, capacity: int) -> Cache:
        grown.append(capacity)
        return grow(cache, config, capacity)

    monkeypatch.setattr(programs, "grow", counted)
    prompts = [list(prompt.encode()) for prompt in PROMPTS]
    one, over = (dict(generator(shape).complete(prompts, (), 24, Greedy())) for shape in (None, (2, 2, 2)))
    assert grown == [40, 40]
    for i, answer in one.items():
        assert over[i].text == answer.text and over[i].logprob == pytest.approx(answer.logprob, abs=1e-4)


@pytest.mark.parametrize("stage", [0, 3])
def test_weights_are_the_same_from_zeros_shards_and_from_the_hosts_memory(stage: int) -> None:
    mesh, config = mesh_of((2, 2, 2)), dataclasses.replace(CONFIG, dtype="bfloat16")
    expected = model.decode_weights(params(), config)
    where = shardings(parameter_partitions(param_table(config), mesh, stage), mesh)
    for given in (jax.device_put(params(), where), jax.tree.map(np.asarray, params())):
        placed = place_weights(given, config, mesh)
        jax.tree.map(np.testing.assert_array_equal, placed, expected)
        values = placed.blocks[0].mlp_up_kernel.values  # outputs first, as a CPU reads bf16
        assert values.sharding.shard_shape(values.shape) == (128, 64) and values.dtype == "bfloat16"


def test_weights_take_the_place_of_the_parameters() -> None:
    given = jax.tree.map(jnp.copy, params())
    expected = model.decode_weights(given, CONFIG)
    for mesh in (None, mesh_of((2, 2, 2))):
        given = jax.tree.map(jnp.copy, params())
        placed = place_weights(given, CONFIG, mesh, consume=True)
        assert all(stack.is_deleted() for stack in given.blocks.leaves())
        jax.tree.map(np.testing.assert_array_equal, placed, expected)


@pytest.mark.parametrize("given", ["parameters", "quantised ahead"])
def test_int8_over_a_mesh_is_int8_on_one_device(given: str) -> None:
    """What tensor shards: a kernel's outputs with their scales (qkv, mlp_up), or its inputs without (out, mlp_down)."""
    prompts = [list(prompt.encode()) for prompt in PROMPTS]
    one, over = (
        dict(
            Generator(
                params() if given == "parameters" else quantised(), CONFIG, ByteTokenizer(), mesh, form="int8"
            ).complete(prompts, (), 12, Greedy())
        )
        for mesh in (None, mesh_of((1, 2, 4)))
    )
    for i, answer in one.items():
        assert over[i].text == answer.text and over[i].logprob == pytest.approx(answer.logprob, abs=2e-3)
    weights = place_weights(params(), CONFIG, mesh_of((1, 2, 4)), "int8")
    down = weights.blocks[0].mlp_down_kernel
    assert down.values.sharding.shard_shape(down.values.shape) == (64, 64) and down.scales.shape == (64,)


def quantised() -> Params[Any]:
    """As a loader makes them: stacked, without having been cut into layers."""

    def one(leaf: Any, spec: Any) -> Any:
        if not stores(spec):
            return leaf
        axis = contracted(spec)
        return jax.vmap(lambda layer: quantise(layer, axis))(leaf) if spec.stacked else quantise(leaf, axis)

    return params().map(one, param_table(CONFIG))


def test_a_token_costs_two_sums_a_block_one_for_its_embedding_and_a_gather_of_its_logits() -> None:
    mesh = mesh_of((1, 2, 4))
    weights = place_weights(params(), CONFIG, mesh)
    place = programs.make_place(CONFIG, 257, mesh)
    rows = np.zeros(4, np.int32)
    draw = programs.Draw(np.uint32(0), rows, np.float32(0), np.int32(0), np.float32(1))
    _, cache = programs.begin(weights, np.zeros((4, 32), np.int32), rows + 1, draw, place, 32)
    found = count(programs.advance.trace(weights, cache, rows, draw, place).jaxpr)
    assert sorted((c.kind, c.axes, c.elements, c.dtype, c.calls) for c in found) == sorted(
        [("all-reduce", ("tensor",), 2 * 64, "float32", 1)] * (2 * CONFIG.n_layers + 1)
        + [("all-gather", ("tensor",), 2 * CONFIG.n_vocab_padded, "float32", 1)]
        + [("all-gather", ("data",), 4, dtype, 1) for dtype in ("int32", "float32")]
    )


def test_a_mesh_that_does_not_divide_the_heads_is_refused() -> None:
    config = dataclasses.replace(CONFIG, n_heads=4)
    with pytest.raises(UserError, match=r"model.n_heads 4 is not divisible by parallel.tensor 8"):
        Generator(params(), config, ByteTokenizer(), mesh_of((1, 1, 8)))
