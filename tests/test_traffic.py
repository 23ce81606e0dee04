"""The step moves what ZeRO and Megatron say, and nothing else: counted from its jaxpr, confirmed in the XLA program.

Everything expected here is derived from the parameter table and the papers' formulas, not from the step's code.
"""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import hlo_text
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, Mesh, PartitionSpec
from step_cells import CONTEXT, SEQUENCES, STAGES, Cell, compiled, config, mesh_of
from step_traffic import KERNELS, TENSOR_SHARDED, of_step, parameters, sent, tally

from gpt3_jax.errors import RunError
from gpt3_jax.program.traffic import Collective, count
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step


def gathered_again(cell: Cell) -> list[str]:
    """The parameters that a backward pass at stage 3 gathers a second time: those whose values it needs.

    Not needed are the position table, and the final LayerNorm, whose result is still at hand. Without remat, only the
    matmuls' kernels and the output matrix are; when a block is recomputed, all of it but the bias that is added last.
    """
    blocks = [name for name, (count, _) in parameters(cell).items() if count > 1 and name != "mlp_down_bias"]
    return ["token_embedding", *(KERNELS if cell.remat == "none" else blocks)]


def tensors(cell: Cell, wanted: list[str], times: int) -> Counter[int]:
    found: Counter[int] = Counter()
    for name in wanted:
        n, elements = parameters(cell)[name]
        found[elements] += n * times
    return found


CELLS = [
    Cell(stage, mesh, microbatches, remat)
    for stage in STAGES
    for mesh in ((1, 8, 1), (2, 2, 2))
    for microbatches, remat in ((1, "none"), (3, "full"))
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_gathers_and_scatters_over_data_are_those_of_the_stage(cell: Cell) -> None:
    found = of_step(cell)
    every = list(parameters(cell))
    gathers, scatters = tally(found, "all-gather", "data"), tally(found, "reduce-scatter", "data")
    if cell.stage == 0:
        assert not gathers and not scatters
    if cell.stage in (1, 2):
        assert gathers == tensors(cell, every, 1)
        assert scatters == tensors(cell, every, 1 if cell.stage == 1 else cell.microbatches)
    if cell.stage == 3:
        first, second = (tensors(cell, some, cell.microbatches) for some in (every, gathered_again(cell)))
        assert gathers == first + second
        assert scatters == tensors(cell, every, cell.microbatches)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_nothing_else_goes_over_data_but_scalars(cell: Cell) -> None:
    found = [c for c in of_step(cell) if "data" in c.axes and c.kind not in ("all-gather", "reduce-scatter")]
    assert {c.kind for c in found} == {"all-reduce"}
    gradients = Counter(c.elements for c in found if c.elements > 1 for _ in range(c.calls))
    if cell.stage == 0:  # the gradients, whole stacks at once
        assert gradients == Counter(n * elements for n, elements in parameters(cell).values())
    else:
        assert not gradients
    assert sum(c.calls for c in found if c.elements == 1) <= 4, "the loss, and the norm by kind of sharding"


@pytest.mark.parametrize("remat", ["none", "full"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_volume_is_the_papers(stage: int, remat: str) -> None:
    """ZeRO section 7: 2Ψ up to stage 2, 3Ψ at stage 3, as (N - 1) / N of each in a ring.

    At stage 3 the paper gathers every parameter twice; here the few that no backward pass needs are gathered once.
    """
    cell = Cell(stage, (1, 8, 1), 1, remat)
    found = of_step(cell)
    sizes = {name: n * elements for name, (n, elements) in parameters(cell).items()}
    psi = sum(sizes.values())
    moved = sent(found, "all-gather", "reduce-scatter", axis="data")
    if stage == 0:
        moved = sent([c for c in found if c.elements > 1], "all-reduce", axis="data")
    once = sum(size for name, size in sizes.items() if name not in gathered_again(cell)) if stage == 3 else 0
    assert moved == Fraction(7, 8) * ((2 if stage < 3 else 3) * psi - once)
    assert once < 0.05 * psi, "what is gathered once is small"


def test_bf16_weights_are_gathered_in_bf16() -> None:
    found = of_step(Cell(3, (1, 8, 1), 1, "full", "bfloat16"))
    assert {c.dtype for c in found if c.kind == "all-gather"} == {"bfloat16"}
    assert {c.dtype for c in found if c.kind != "all-gather"} == {"float32"}  # the CPU's reductions


@pytest.mark.parametrize("cell", [c._replace(mesh=m) for m in ((1, 4, 2), (1, 1, 8)) for c in CELLS[2::4]], ids=str)
@pytest.mark.parametrize("remat", ["none", "full"])
def test_tensor_parallelism_moves_megatrons_volume(cell: Cell, remat: str) -> None:
    """Sequence sharding turns each of Megatron's all-reduces of B × T × D into a gather and a scatter.

    Forward, a block has two of each, and its backward pass mirrors them. Recomputing a block repeats its two gathers
    and one of its scatters: what the last one gives, no gradient needs. Embedding and head add a gather and a scatter
    each, forward and backward together.
    """
    cell = cell._replace(remat=remat)
    found, model = of_step(cell), config(cell).model
    activations = SEQUENCES // cell.mesh[1] // cell.microbatches * CONTEXT * model.d_model
    recomputed = remat == "full"
    gathers = (4 + 2 * recomputed) * model.n_layers + 2
    scatters = (4 + recomputed) * model.n_layers + 2
    assert tally(found, "all-gather", "tensor") == {activations: gathers * cell.microbatches}
    assert tally(found, "reduce-scatter", "tensor") == {activations: scatters * cell.microbatches}
    ring = Fraction(cell.mesh[2] - 1, cell.mesh[2])
    volume = ring * (gathers + scatters) * activations * cell.microbatches
    assert sent(found, "all-gather", "reduce-scatter", axis="tensor") == volume


@pytest.mark.parametrize("stage", STAGES)
def test_what_tensor_shards_reduce_is_the_loss_and_what_they_hold_in_common(stage: int) -> None:
    cell = Cell(stage, (1, 4, 2), 1, "full")
    found = [c for c in of_step(cell) if c.kind == "all-reduce" and "tensor" in c.axes]
    shared = [n * elements for name, (n, elements) in parameters(cell).items() if name not in TENSOR_SHARDED]
    # At stage 0 the same all-reduce serves both axes; from stage 1 on, gradients are data shards when they get here.
    axes, shards = (("data", "tensor"), 1) if stage == 0 else (("tensor",), 4)
    rows = SEQUENCES // 4 * CONTEXT
    chunks = -(-rows // config(cell).memory.loss_chunk)
    # For each chunk of the loss: the maximum, the sum of exponentials, and the label's logit, of its rows.
    expected: Counter[tuple[tuple[str, ...], int]] = Counter({(("tensor",), -(-rows // chunks)): 3 * chunks})
    expected.update((axes, size // shards) for size in shared)
    got: Counter[tuple[tuple[str, ...], int]] = Counter()
    for c in found:
        if c.elements > 1:
            got[c.axes, c.elements] += c.calls
    assert got == expected


@pytest.mark.parametrize(
    "cell",
    [
        *(Cell(stage, (2, 2, 2), 3, "full") for stage in STAGES),
        Cell(3, (1, 8, 1), 1, "none"),
    ],
    ids=str,
)
def test_the_compiled_program_holds_what_the_jaxpr_says(cell: Cell) -> None:
    """XLA adds no collective, drops none, and merges or splits no gather or scatter of a block.

    At stage 3 it may see that the parameters in front of the blocks and behind them are gathered several times from
    the same shards: once for each microbatch and, on a CPU, whose compiler drops the barrier that keeps the output
    matrix apart from the embedding, for both uses of that. What it does there varies from version to version.
    """
    expected: Counter[tuple[str, tuple[str, ...], int]] = Counter()
    for c in of_step(cell):
        expected[c.kind, c.axes, c.elements] += c.calls
    found = hlo_text.collectives(compiled(cell).as_text(), mesh_of(config(cell)))
    mergeable: Counter[tuple[str, tuple[str, ...], int]] = Counter()
    if cell.stage == 3:
        top = ["token_embedding", "position_embedding", "ln_f_scale", "ln_f_bias"]
        again = tensors(cell, top, cell.microbatches - 1) + tensors(cell, ["token_embedding"], cell.microbatches)
        mergeable.update({("all-gather", ("data",), elements): calls for elements, calls in again.items()})
    assert not found - expected, "more than the jaxpr says"
    assert not expected - found - mergeable, "less than the jaxpr says"


def test_unrolled_to_the_last_block_recomputation_stands_behind_barriers() -> None:
    """No loop parts forward and backward then: without barriers, the compiler would merge what is gathered twice.

    (On a GPU or TPU it heeds them. The CPU's of jax 0.10 drops them, so this looks at the program it is given.)
    """
    barriers = {}
    for unroll in (1, 2):
        settings = config(Cell(3, (1, 8, 1), 1, "full", unroll=unroll))
        mesh = mesh_of(settings)
        rows = jax.ShapeDtypeStruct((SEQUENCES, CONTEXT + 1), jnp.int32)
        text = make_step(settings, mesh).lower(abstract_state(settings, mesh), rows).as_text()
        barriers[unroll] = text.count("optimization_barrier")
    assert barriers[2] > barriers[1]


# -- the counter itself ----------------------------------------------------------------------------------------------


def mesh_2x4() -> Mesh:
    return Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)


def counted(f: Any, shape: tuple[int, ...] = (8, 8), dtype: Any = jnp.float32, mesh: Mesh | None = None) -> list[Any]:
    mapped = jax.shard_map(
        f, mesh=mesh or mesh_2x4(), in_specs=PartitionSpec(("a", "b")), out_specs=PartitionSpec(), check_vma=False
    )
    return count(jax.jit(mapped), jax.ShapeDtypeStruct(shape, dtype))


@pytest.mark.parametrize(
    ("f", "kind", "axes", "elements", "sent_elements"),
    [
        (lambda x: lax.all_gather(x, "b"), "all-gather", ("b",), 32, Fraction(3, 4) * 32),
        (lambda x: lax.psum_scatter(x, "b", scatter_dimension=1, tiled=True), "reduce-scatter", ("b",), 8, 6),
        (lambda x: lax.psum(x, ("b", "a")), "all-reduce", ("a", "b"), 8, Fraction(2 * 7, 8) * 8),
        (lambda x: lax.pmax(x, "a"), "all-reduce", ("a",), 8, 8),
        (lambda x: lax.ppermute(x, "a", [(0, 1), (1, 0)]), "permute", ("a",), 8, 8),
        (lambda x: lax.all_to_all(x, "a", 1, 1, tiled=True), "all-to-all", ("a",), 8, 4),
    ],
    ids=["all_gather", "psum_scatter", "psum", "pmax", "ppermute", "all_to_all"],
)
def test_each_collective_and_its_ring_formula(
    f: Any, kind: str, axes: tuple[str, ...], elements: int, sent_elements: Fraction
) -> None:
    (found,) = counted(f, dtype=jnp.bfloat16)
    assert (found.kind, found.axes, found.elements, found.dtype, found.calls) == (kind, axes, elements, "bfloat16", 1)
    assert found.elements_sent == sent_elements
    assert found.bytes_sent == 2 * sent_elements
    assert "test_traffic.py" in found.source


def test_loops_multiply() -> None:
    (found,) = counted(lambda x: lax.scan(lambda x, _: (lax.psum(x, "a"), None), x, None, length=3)[0])
    assert found.calls == 3

    def nested(x: jax.Array, _: None) -> tuple[jax.Array, None]:
        once = jax.checkpoint(lambda x, _: (lax.psum(x, "a"), None))
        return lax.scan(once, x, None, length=5)[0], None

    (found,) = counted(lambda x: jax.jit(lambda x: lax.scan(nested, x, None, length=3)[0])(x))
    assert found.calls == 15


def test_branches_that_agree_count_once_and_others_are_refused() -> None:
    def conditional(x: jax.Array, other: Any) -> jax.Array:
        return lax.cond(x[0, 0] > 0, lambda x: lax.psum(x, "a"), other, x)

    assert len(counted(lambda x: conditional(x, lambda x: lax.psum(2 * x, "a")))) == 1
    with pytest.raises(RunError, match=r"test_traffic.*branch"):
        counted(lambda x: conditional(x, lambda x: lax.psum(x, "b")))


def test_a_loop_of_unknown_length_is_refused_only_around_a_collective() -> None:
    def loop(x: jax.Array, body: Any) -> jax.Array:
        return lax.while_loop(lambda x: x[0, 0] < 9, body, x)

    assert counted(lambda x: loop(x, lambda x: x + 1)) == []
    with pytest.raises(RunError, match="fixed trip count"):
        counted(lambda x: loop(x, lambda x: lax.psum(x, "a")))


def test_groups_of_one_device_are_left_out() -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(8, 1), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    assert counted(lambda x: lax.psum(x, "b"), mesh=mesh) == []


def test_a_gather_in_steps_sends_what_one_over_all_sends() -> None:
    mesh = Mesh(np.array(jax.devices()), ("data",), axis_types=(AxisType.Auto,))
    rows = tuple(tuple(range(first, first + 2)) for first in range(0, 8, 2))
    columns = tuple(zip(*rows, strict=True))

    def in_steps(x: Any, steps: Any) -> Any:
        for groups in steps:
            x = lax.all_gather(x, "data", tiled=True, axis_index_groups=groups)
        return x

    def collectives(steps: Any) -> list[Collective]:
        over = PartitionSpec("data")
        local = jax.shard_map(lambda x: in_steps(x, steps), mesh=mesh, in_specs=over, out_specs=over)
        return count(local, jnp.zeros(80))

    (one,), (inner, outer) = collectives([None]), collectives([rows, columns])
    assert (inner.devices, outer.devices) == (2, 4)
    assert inner.elements_sent + outer.elements_sent == one.elements_sent == 70
