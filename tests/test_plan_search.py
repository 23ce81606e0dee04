"""The search: what it tries, in which order, and that what it recommends was compiled and fits. On fake CPU devices,
which the planner takes for a node of GPUs with little memory."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import jax
import pytest
from fake_topologies import fake_topology
from step_cells import CONTEXT, Cell, config

from gpt3_jax import config as config_module
from gpt3_jax import devices
from gpt3_jax.cli import plan as command_line
from gpt3_jax.cluster.log import log
from gpt3_jax.config import Config, load_config
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.parallel.mesh import MeshShape
from gpt3_jax.plan import cache, elementwise, estimate, formulas
from gpt3_jax.plan import search as searching
from gpt3_jax.plan.cache import plan
from gpt3_jax.plan.candidates import PARTS, REMATS, ROOMY, SLACK, Candidate, candidates, in_order, worth_compiling
from gpt3_jax.plan.candidates import _replicas as searching_replicas
from gpt3_jax.plan.found import check_file, comments, write_configuration
from gpt3_jax.plan.predict import _as_it_stands
from gpt3_jax.plan.receipt import Receipt
from gpt3_jax.plan.roofline import Traffic
from gpt3_jax.plan.search import Tried, best_first, nearest, search
from gpt3_jax.plan.step import CompiledStep, compile_step
from gpt3_jax.plan.topologies import Topology
from gpt3_jax.quantities import count

SEQUENCES = 32


def node(memory: int = 10**9) -> Topology:
    """GPUs of which XLA takes `memory` bytes."""
    h100 = devices.lookup("NVIDIA H100 80GB HBM3")
    assert h100 is not None
    small = dataclasses.replace(h100, hbm_usable=math.ceil(memory / devices.XLA_GPU_FRACTION))
    return Topology("h100:1x8", "h100", (1, 8), 1, tuple(jax.devices()), small)


def settings() -> Config:
    base = config(Cell(1, (1, 8, 1)))
    return dataclasses.replace(base, train=dataclasses.replace(base.train, batch_tokens=SEQUENCES * CONTEXT))


@functools.cache
def compiled(config: Config) -> CompiledStep:
    return compile_step(config, node())


@pytest.fixture(autouse=True)
def each_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes differ in memory only, which the CPU's compiler is not told of."""
    monkeypatch.setattr(
        cache, "compile_step", lambda config, machine: dataclasses.replace(compiled(config), topology=machine)
    )


def test_every_candidate_divides_and_no_combination_comes_twice() -> None:
    found = candidates(settings(), node())
    model = settings().model
    seen = set()
    for candidate in found:
        mesh = candidate.mesh
        assert mesh.devices == 8
        assert SEQUENCES % mesh.batch_shards == 0
        assert model.n_heads % mesh.tensor == 0 and model.n_vocab_padded % mesh.tensor == 0
        per_shard = SEQUENCES // mesh.batch_shards
        assert candidate.config.memory.microbatch * candidate.microbatches == per_shard
        assert tuple(candidate.settings.values()) not in seen
        seen.add(tuple(candidate.settings.values()))
    steps = [candidate.prediction.step_seconds for candidate in found]
    assert steps == sorted(steps)
    meshes = {candidate.mesh.sizes for candidate in found}
    assert meshes == {(1, 8, 1), (1, 4, 2), (1, 2, 4), (1, 1, 8)}
    assert {candidate.config.parallel.stage for candidate in found} == {0, 1, 2, 3}
    assert {candidate.config.memory.remat for candidate in found} == {*REMATS} - {"offload"}


def test_parts_of_an_mlp_are_kept_where_they_can_be() -> None:
    base = settings()
    asked = dataclasses.replace(
        base,
        parallel=dataclasses.replace(base.parallel, stage=3),
        memory=dataclasses.replace(base.memory, remat="full", mlp_parts=3),
    )
    found = candidates(asked, node())
    assert {c.config.memory.mlp_parts for c in found} == {1}
    eight = dataclasses.replace(asked, memory=dataclasses.replace(asked.memory, mlp_parts=8))
    for candidate in candidates(eight, node()):
        inside = candidate.config.parallel.stage == 3 and candidate.config.memory.remat == "full"
        assert candidate.config.memory.mlp_parts == (8 if inside else 1)
        assert candidate.options.endswith(f"--memory.mlp_parts {candidate.config.memory.mlp_parts}")


def test_where_memory_is_short_offload_and_more_parts_are_tried_and_nowhere_else() -> None:
    roomy = candidates(settings(), node())
    needs = sorted(c.bytes for c in roomy if c.config.memory.remat == "full")
    usable = int(needs[len(needs) // 2] / ROOMY)  # half of them are short of it

    def place(c: Candidate) -> tuple[object, ...]:
        return (*c.mesh.sizes, c.config.parallel.stage, c.config.memory.microbatch)

    found = candidates(settings(), node(usable))
    need = {place(c): c.bytes for c in roomy if c.config.memory.remat == "full"}
    saving = [c for c in found if c.config.memory.remat == "offload" or c.config.memory.mlp_parts > 1]
    # What is tight but hopeless is left out, like everything that cannot fit.
    assert saving and {place(c) for c in saving} <= {at for at, size in need.items() if size > ROOMY * usable}
    assert {(c.config.memory.remat, c.config.memory.mlp_parts) for c in saving} == {
        ("offload", 1), ("full", PARTS), ("offload", PARTS)
    }  # fmt: skip
    for c in saving:
        assert c.bytes < need[place(c)]
        assert c.config.memory.mlp_parts == 1 or c.config.parallel.stage == 3
    # A tie is for what needs no host and no parts.
    order = {(place(c), c.config.memory.remat, c.config.memory.mlp_parts): i for i, c in enumerate(found)}
    for c in saving:
        plain = order.get((place(c), "full", 1))
        assert plain is None or plain < order[place(c), c.config.memory.remat, c.config.memory.mlp_parts]


def test_of_equals_one_without_copies_to_the_host_comes_first() -> None:
    """By arithmetic copies are free where nothing is known of their way."""
    base = settings()
    short = node(10**6)
    assert short.device is not None
    unknown = dataclasses.replace(short, device=dataclasses.replace(short.device, host_link=None))
    found = candidates(base, unknown)
    places = [(*c.mesh.sizes, c.config.parallel.stage, c.config.memory.microbatch) for c in found]
    order = {
        (at, c.config.memory.remat, c.config.memory.mlp_parts): i
        for i, (at, c) in enumerate(zip(places, found, strict=True))
    }
    both = [at for at in places if (at, "full", 1) in order and (at, "offload", 1) in order]
    assert both
    for at in both:
        assert (
            found[order[at, "full", 1]].prediction.step_seconds
            == found[order[at, "offload", 1]].prediction.step_seconds
        )
        assert order[at, "full", 1] < order[at, "offload", 1]


def test_what_is_asked_for_is_tried_where_there_is_room_too() -> None:
    base = settings()
    asked = dataclasses.replace(
        base,
        parallel=dataclasses.replace(base.parallel, stage=3),
        memory=dataclasses.replace(base.memory, remat="offload", mlp_parts=4),
    )
    found = candidates(asked, node())
    assert {c.config.memory.remat for c in found} == {*REMATS} - {"none"}, "which keeps more than pays"
    for c in found:
        inside = c.config.parallel.stage == 3 and c.config.memory.remat in ("full", "offload")
        assert c.config.memory.mlp_parts == (4 if inside else 1)


def test_what_saves_memory_takes_one_attempt_beside_the_two() -> None:
    usable = int(max(c.bytes for c in candidates(settings(), node()) if c.config.memory.remat == "full"))
    found = candidates(settings(), node(usable))
    tried = list(worth_compiling(found, settings()))
    assert any(c.config.memory.remat == "offload" or c.config.memory.mlp_parts > 1 for c in tried)
    kinds: dict[tuple[object, ...], list[bool]] = {}
    for c in tried:
        remat = "full" if c.config.memory.remat == "offload" else c.config.memory.remat
        at = (*c.mesh.sizes, c.config.parallel.stage, remat)
        kinds.setdefault(at, []).append(c.config.memory.remat == "offload" or c.config.memory.mlp_parts > 1)
    assert all(saving.count(True) <= 1 and saving.count(False) <= 2 for saving in kinds.values())


def test_replicas_are_whole_nodes_and_what_does_not_divide_is_left_out() -> None:
    two_nodes = dataclasses.replace(node(), shape=(2, 4))
    assert {c.mesh.sizes for c in candidates(settings(), two_nodes)} == {
        (1, 8, 1), (1, 4, 2), (1, 2, 4), (2, 4, 1), (2, 2, 2), (2, 1, 4)
    }  # fmt: skip
    # ZeRO without a group to shard over is no stage of its own.
    assert {c.config.parallel.stage for c in candidates(settings(), two_nodes) if c.mesh.data == 1} == {0}
    odd = dataclasses.replace(settings().model, d_model=36, n_heads=4)
    narrow = candidates(dataclasses.replace(settings(), model=odd), two_nodes)
    assert {c.mesh.data * c.mesh.tensor for c in narrow} == {4}, "8 do not divide a width of 36"


def test_of_those_that_differ_in_microbatches_only_two_are_tried() -> None:
    found = candidates(settings(), node())
    tried = list(worth_compiling(found, settings()))
    kinds = [(*c.mesh.sizes, c.config.parallel.stage, c.config.memory.remat) for c in tried]
    assert {kinds.count(kind) for kind in kinds} == {2}
    assert set(kinds) == {(*c.mesh.sizes, c.config.parallel.stage, c.config.memory.remat) for c in found}
    assert tried == sorted(tried, key=lambda c: c.prediction.step_seconds)


def test_the_nearest_are_tried_before_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[Candidate] = []

    def none_fits(found: list[Candidate], *args: object) -> list[Any]:
        tried.extend(found)
        return []

    monkeypatch.setattr(searching, "confirm", none_fits)
    mesh = MeshShape(data=8)
    now = _now(settings(), mesh)
    del now["parallel.data"]
    searching.nearest(settings(), mesh, node(), 2, None)
    found = [sum(c.settings[key] != value for key, value in now.items()) for c in tried]
    assert found == sorted(found) and found[0] == 1


def test_estimated_traffic_is_zeros_and_the_optimizers_bytes_are_there() -> None:
    base = dataclasses.replace(settings(), model=dataclasses.replace(settings().model, dtype="bfloat16"))
    psi = formulas.psi_of_shard(base.model, 1)
    hbm = {}
    for stage in formulas.STAGES:
        parallel = dataclasses.replace(base.parallel, stage=stage, reduce_dtype="bfloat16")
        work = estimate.work(
            dataclasses.replace(base, parallel=parallel), MeshShape(2, 4), 1, "gpu", overlaps_scatters=True
        )
        over = {axis: sum(part.bytes for part in work.traffic if part.axes == (axis,)) for axis in ("data", "replica")}
        assert over["data"] == pytest.approx(2 * psi * formulas.traffic(stage) * 3 / 4)
        assert over["replica"] == pytest.approx(2 * psi / (4 if stage else 1)), "shards, all-reduced by two"
        hbm[stage] = work.hbm_bytes
    assert hbm[0] - hbm[1] == pytest.approx(elementwise.optimizer_bytes(psi * 3 / 4))
    assert hbm[1] == hbm[2] == hbm[3]


def test_by_the_estimate_a_plain_scan_on_a_tpu_waits_for_its_traffic() -> None:
    """Half of the gathers and each reduce-scatter, where the loop over depth does not gather ahead."""
    base = config_module.replace(settings(), parallel={"stage": 3})
    layers = base.model.n_layers

    def waited(platform: str, overlaps_scatters: bool) -> dict[str, float]:
        work = estimate.work(base, MeshShape(data=8), 1, platform, overlaps_scatters)
        found = [part for part in work.traffic if part.axes == ("data",)]
        return {part.kind: 1 / part.calls if part.exposed is None else part.exposed for part in found}

    hidden = {"all-gather": 1 / layers, "reduce-scatter": 1 / layers}
    assert waited("tpu", overlaps_scatters=False) == {"all-gather": 0.5, "reduce-scatter": 1.0}
    assert waited("tpu", overlaps_scatters=True) == waited("gpu", overlaps_scatters=False) == hidden


def test_what_is_known_of_a_blocks_traffic_does_not_hold_outside_the_blocks() -> None:
    part = Traffic(("data",), "all-gather", 1.0, 4, exposed=0.5)
    for stage, found in ((3, part), (2, dataclasses.replace(part, calls=1, exposed=None))):
        assert _as_it_stands(part, config_module.replace(settings(), parallel={"stage": stage})) == found


def test_what_cannot_fit_by_arithmetic_is_not_tried() -> None:
    everything = candidates(settings(), node())
    half = sorted(c.bytes for c in everything)[len(everything) // 2]
    left = candidates(settings(), node(int(half)))
    assert 0 < len(left) < len(everything)
    assert max(c.bytes for c in left) <= SLACK * half
    with pytest.raises(UserError, match="fits h100:1x8 by arithmetic"):
        search(settings(), node(1000), 1, None, 1e9)


def test_a_search_confirms_by_compiling_and_keeps_what_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    compiled: list[Any] = []

    def compiles(*args: Any) -> CompiledStep:
        compiled.append(args)
        return compile_step(*args)

    monkeypatch.setattr(cache, "compile_step", compiles)
    monkeypatch.setattr(searching, "NEAR", 10.0)
    monkeypatch.setattr(searching, "OTHERS", 10)
    monkeypatch.setattr(searching, "_simplest_of", lambda *args: [])
    monkeypatch.setattr(searching, "_waiting_less", lambda *args: [])
    tried = Tried()
    found = search(settings(), node(), 2, tmp_path, 1e9, tried)
    assert len(found) == 2 and len(compiled) == 5, "two, and the fastest of the three other remats"
    assert [c.config for c, _ in tried.compiled] == [args[0] for args in compiled] and not tried.left
    assert all(receipt.memory.fits for _, receipt in found)
    times = [receipt.prediction.step_seconds for _, receipt in found if receipt.prediction]
    assert len(times) == 2 and times == sorted(times)
    assert sum("B, fits" in line for line in said) == 5

    again = search(settings(), node(), 2, tmp_path, 1e9)
    assert len(compiled) == 5
    assert [receipt for _, receipt in again] == [receipt for _, receipt in found]
    assert "kept from before" in said[-1]


def test_the_best_is_written_as_a_configuration(tmp_path: Path) -> None:
    file = tmp_path / "best.yaml"
    config, receipt = settings(), plan(settings(), node(), None)[0]
    assert receipt.prediction is not None
    write_configuration(str(file), config, receipt, "gpt3-jax plan --search")
    assert load_config([file]) == config
    assert file.read_text().startswith("# found by: gpt3-jax plan --search\n#")
    # Tokens per second and MFU are those of the longer time.
    waits = dataclasses.replace(receipt, scheduled_seconds=2 * receipt.prediction.step_seconds)
    assert f"MFU {receipt.prediction.mfu / 2:.1%}" in comments(waits, "")
    assert f"{count(receipt.prediction.tokens_per_second / 2)} tokens/s" in comments(waits, "")
    assert not [other for other in tmp_path.iterdir() if other != file]
    with pytest.raises(UserError, match="exists; choose another"):
        check_file(str(file))


def test_the_command_writes_the_best_or_says_that_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    file = tmp_path / "best.yaml"
    found = search(settings(), node(), 2, None, 1e9)
    assert found[0][0].config != found[1][0].config
    argv = ["--config", "tiny.yaml", "--topology", "h100:1x8", "--search", "--out", str(file)]

    def command() -> int:
        return command_line._search(
            settings(), node(), 2, None, Namespace(out=str(file), json=False, minutes=None), argv
        )

    monkeypatch.setattr(searching, "search", lambda *_: [])
    assert command() == 1 and not file.exists()
    assert f"{file} is not written: no configuration that fits was found" in said[-1]
    monkeypatch.setattr(searching, "search", lambda *_: found)
    assert command() == 0 and load_config([file]) == found[0][0].config
    assert file.read_text().startswith(
        "# found by: gpt3-jax plan --config tiny.yaml --topology h100:1x8 --search --out"
    )


def test_the_nearest_that_fits_changes_as_little_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "SECONDS", 1e9)  # however busy the machine is
    too_large = settings()
    tight, _ = plan(too_large, node(), None)
    # One byte short of what this configuration takes: something else has to be found.
    found = nearest(too_large, tight.mesh, node(tight.memory.total - 1), 1, None)
    ((candidate, receipt),) = found
    assert receipt.memory.total < tight.memory.total
    assert receipt.memory.fits
    changed = [key for key, value in candidate.settings.items() if value != _now(too_large, tight.mesh)[key]]
    assert 1 <= len(changed) <= 2


def compile_in_vain(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Lets each compilation take so long, and fail; the clock moves by nothing else."""
    now = 0.0

    def fail(*args: object) -> None:
        nonlocal now
        now += seconds
        raise RunError("no")

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(searching, "plan", fail)


def test_what_is_nearest_and_was_not_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With compilations of a minute and ten seconds each, none begins that would end after two minutes."""
    told = [""]
    compile_in_vain(monkeypatch, 70.0)
    monkeypatch.setattr(log, "info", told.append)
    assert nearest(settings(), MeshShape(data=8), node(), 2, None) == []
    assert "stopped after 70 s with 5 more to compile, the nearest of them --parallel.stage" in told[-1]
    assert "gpt3-jax plan --search --minutes" in told[-1]


def _now(config: Config, mesh: MeshShape) -> dict[str, object]:
    return {
        "parallel.stage": config.parallel.stage,
        **{f"parallel.{axis}": size for axis, size in mesh.axes.items()},
        "memory.remat": config.memory.remat,
        "memory.microbatch": config.memory.microbatch,
        "memory.mlp_parts": config.memory.mlp_parts,
    }


def test_each_remat_that_leaves_room_is_compiled(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    """Whatever arithmetic puts first: of those found, the fastest by what was compiled are told."""
    seconds = {"none": 3.0, "minimal": 1.0, "save_qkv_proj": 2.0, "save_attention": 2.5, "full": 2.8}
    compiled: list[Candidate] = []

    def pretend(config: Config, topology: Topology, cache: Path | None) -> tuple[object, bool]:
        compiled.append(next(c for c in everything if c.config is config))
        receipt = plan(base, node(), None)[0]
        assert receipt.prediction is not None
        told = dataclasses.replace(receipt.prediction, step_seconds=seconds[config.memory.remat])
        return dataclasses.replace(receipt, prediction=told), False

    base = settings()
    everything = sorted(candidates(base, node()), key=lambda c: c.config.memory.remat != "none")
    monkeypatch.setattr(searching, "candidates", lambda config, topology: everything)
    monkeypatch.setattr(searching, "plan", pretend)
    monkeypatch.setattr(searching, "_faster", lambda *args: [])
    monkeypatch.setattr(searching, "NEAR", 10.0)
    monkeypatch.setattr(searching, "OTHERS", 10)
    monkeypatch.setattr(searching, "_simplest_of", lambda *args: [])
    monkeypatch.setattr(searching, "_waiting_less", lambda *args: [])
    found = search(base, node(), 2, None, 1e9)
    remats = [c.config.memory.remat for c in compiled]
    assert remats[:2] == ["none", "none"]
    assert sorted(remats[2:]) == ["full", "minimal", "save_attention", "save_qkv_proj"]
    assert [c.config.memory.remat for c, _ in found] == ["minimal", "save_qkv_proj"]
    assert any("fastest of other remats" in line for line in said)


def test_a_search_that_finds_fewer_says_so(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    everything = candidates(settings(), node())
    monkeypatch.setattr(searching, "candidates", lambda config, topology: everything[:1])
    assert len(search(settings(), node(), 2, None, 1e9)) == 1
    assert "1 of the 2 wanted were found: there are no more to compile" in said[-1]

    monkeypatch.setattr(searching, "candidates", lambda config, topology: everything)
    monkeypatch.setattr(searching, "plan", refuse)
    assert search(settings(), node(), 1, None, 1e9) == []
    assert "0 of the 1 wanted were found: 4 of the fastest kinds were compiled" in said[-1]


def test_the_first_compiled_has_room_and_what_may_not_fit_comes_last() -> None:
    some = sorted(c.bytes for c in candidates(settings(), node()))
    usable = int(some[len(some) // 2])
    found = candidates(settings(), node(usable))
    first, *rest = in_order(found, settings(), usable)
    assert first == next(c for c in found if c.bytes <= ROOMY * usable), "of all: a smaller microbatch, too"
    fits, beyond = [c for c in found if c.bytes <= usable], [c for c in found if c.bytes > usable]
    worth = [*worth_compiling(fits, settings()), *worth_compiling(beyond, settings())]
    assert rest == [c for c in worth if c is not first], "fastest first"
    # Of those that do not fit, none takes the place of a smaller microbatch that does.
    assert sum(c.bytes <= usable for c in rest) > sum(c.bytes <= usable for c in worth_compiling(found, settings()))


def test_if_none_has_room_the_first_compiled_needs_least() -> None:
    least = min(c.bytes for c in candidates(settings(), node()) if c.config.memory.remat == "full")
    found = candidates(settings(), node(int(least)))
    usable = int(min(c.bytes for c in found))
    assert all(c.bytes > ROOMY * usable for c in found)
    first, *rest = in_order(found, settings(), usable)
    assert first.bytes == min(c.bytes for c in found) and first not in rest


@pytest.mark.parametrize(("seconds", "attempts"), [(0.0, 1), (25.0, 2), (1e9, 4)])
def test_a_search_ends_in_time_and_says_what_it_left_out(
    monkeypatch: pytest.MonkeyPatch, said: list[str], seconds: float, attempts: int
) -> None:
    """With compilations of ten seconds each, none begins that would end after the time."""
    compile_in_vain(monkeypatch, 10.0)
    monkeypatch.setattr(searching, "_of_other_remats", lambda *args: [])
    assert search(settings(), node(), 1, None, seconds) == []
    assert time.monotonic() == 10.0 * attempts
    if attempts == 4:
        assert "4 of the fastest kinds were compiled" in said[-1]
    else:
        assert f"stopped after {10 * attempts} s with {4 - attempts} more to compile" in said[-1]
        assert "--parallel.stage" in said[-1] and "--minutes" in said[-1]


def test_what_was_kept_takes_no_time(tmp_path: Path, said: list[str]) -> None:
    found = search(settings(), node(), 2, tmp_path, 1e9)
    assert search(settings(), node(), 2, tmp_path, 0.0) == found
    assert not any("stopped after" in line for line in said)


def made(seconds: float, scheduled: float = 1.0, sizes: tuple[int, int, int] = (1, 8, 1)) -> tuple[Candidate, Receipt]:
    """A configuration that was compiled, with these times by arithmetic and compiled."""
    candidate, receipt = candidates(settings(), node())[0], plan(settings(), node(), None)[0]
    assert receipt.prediction is not None
    return (
        dataclasses.replace(
            candidate,
            mesh=MeshShape(*sizes),
            prediction=dataclasses.replace(candidate.prediction, step_seconds=seconds),
        ),
        dataclasses.replace(
            receipt,
            prediction=dataclasses.replace(receipt.prediction, step_seconds=seconds),
            scheduled_seconds=scheduled,
        ),
    )


def test_of_those_as_fast_the_simplest_is_best() -> None:
    """By the longer of the two times; within 3 % of the fastest, that with the fewest mesh axes."""
    fast, waits = made(1.00, scheduled=1.01, sizes=(1, 4, 2)), made(0.80, scheduled=1.10, sizes=(1, 4, 2))
    simple, plain = made(1.02, scheduled=0.9), made(0.9, scheduled=1.03)
    slow = made(1.05, scheduled=0.5)
    assert best_first([]) == []
    assert best_first([slow, waits, fast]) == [fast, slow, waits]
    assert best_first([slow, plain, simple, waits, fast]) == [simple, fast, plain, slow, waits]


def test_what_would_be_faster_is_compiled_although_it_may_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has room to spare; of what is predicted to fit, all that is more than 3 % faster is tried after it."""
    one = made(1.0)[0]
    room = node().usable
    assert room is not None

    def at(seconds: float, share: float) -> Candidate:
        return dataclasses.replace(made(seconds)[0], bytes=share * room)

    near, risky, hopeless = at(0.98, 0.95), at(0.90, 0.95), at(0.5, 1.05)
    confirmed = [(one, made(1.0)[1])]
    assert searching._faster([hopeless, risky, near, one], confirmed, node()) == [risky]
    assert searching._faster([risky], [], node()) == []


def test_a_remat_that_is_slower_by_more_than_arithmetic_errs_is_not_compiled() -> None:
    best = made(1.0)
    found = [dataclasses.replace(c, prediction=best[0].prediction) for c in candidates(settings(), node())]
    remats = {c.config.memory.remat for c in found} - {best[0].config.memory.remat}
    tried = {c.config.memory.remat for c in searching._of_other_remats(found, [best], node())}
    assert tried < remats and len(tried) == searching.OTHERS
    slower = dataclasses.replace(best[0].prediction, step_seconds=1.01 * searching.NEAR)
    found = [dataclasses.replace(c, prediction=slower) for c in found]
    assert searching._of_other_remats(found, [best], node()) == []


def test_the_simplest_as_fast_is_compiled_too() -> None:
    best = made(1.0, sizes=(2, 2, 2))
    simple, two, slow = made(1.02)[0], made(1.01, sizes=(1, 4, 2))[0], made(1.04)[0]
    tight = dataclasses.replace(made(1.0)[0], bytes=0.95 * (node().usable or 0))
    assert searching._simplest_of([best[0], tight, two, simple, slow], [best], node()) == [simple]
    assert searching._simplest_of([two, simple], [made(1.0)], node()) == []
    assert searching._simplest_of([best[0], slow], [best], node()) == []
    assert searching._simplest_of([simple], [], node()) == []


def test_where_the_program_of_the_best_waits_others_are_compiled_too() -> None:
    """Those of another tensor axis and of another stage whose estimates are faster than what the best takes."""
    best = made(1.0, scheduled=1.2)

    def stage(one: Candidate, stage: int) -> Candidate:
        return dataclasses.replace(one, config=config_module.replace(one.config, parallel={"stage": stage}))

    def remat(one: Candidate, remat: str) -> Candidate:
        return dataclasses.replace(one, config=config_module.replace(one.config, memory={"remat": remat}))

    assert best[0].config.parallel.stage == 3 and best[0].config.memory.remat == "full"
    split, slower = made(1.1, sizes=(1, 4, 2))[0], made(1.15, sizes=(1, 2, 4))[0]
    second, first = stage(made(1.1)[0], 2), stage(made(1.11)[0], 1)
    also_split = stage(split, 2)
    found = [best[0], split, also_split, second, first, slower]
    assert searching._waiting_less(found, [best], node()) == [split, second, first, slower]
    assert searching._waiting_less(found, [best, (first, best[1])], node()) == [split, second, slower]
    # The best in fewer microbatches, whose weights are gathered less often.
    many = dataclasses.replace(best[0], microbatches=2)
    few = config_module.replace(best[0].config, memory={"microbatch": 2 * best[0].config.memory.microbatch})
    fewer = dataclasses.replace(made(1.05)[0], config=few, microbatches=1)
    assert searching._waiting_less([many, fewer], [(many, best[1])], node()) == [fewer]
    assert searching._waiting_less([many, fewer], [(fewer, best[1])], node()) == []
    # Of a mesh that was compiled and is slower, another remat comes after those of the best's.
    here, there = remat(made(1.15)[0], "minimal"), remat(made(1.11, sizes=(1, 4, 2))[0], "minimal")
    confirmed = [best, (split, made(1.1, scheduled=1.3)[1])]
    assert searching._waiting_less([best[0], split, there, here], confirmed, node()) == [here, there]
    assert searching._waiting_less(found, [made(1.0, scheduled=1.05)], node()) == []
    assert searching._waiting_less(found, [], node()) == []


def test_where_the_best_leaves_no_room_others_need_not_either() -> None:
    usable = node().usable or 0

    def needing(share: float, one: Candidate) -> Candidate:
        return dataclasses.replace(one, bytes=share * usable)

    tight, beyond = (needing(share, made(1.1, sizes=(1, 4, 2))[0]) for share in (0.95, 1.05))
    best, receipt = made(1.0, scheduled=1.2)
    assert searching._waiting_less([tight], [(best, receipt)], node()) == []
    assert searching._waiting_less([beyond, tight], [(needing(0.95, best), receipt)], node()) == [tight]


def test_replicas_of_one_slice_are_powers_of_two() -> None:
    """A batch of fewer sequences than devices, and a width that they do not divide, need them."""
    pod = dataclasses.replace(fake_topology(), name="v5e:2x4", family="v5e", shape=(2, 4))
    assert searching_replicas(pod) == [1, 2, 4, 8]
    assert searching_replicas(dataclasses.replace(pod, slices=2)) == [2, 4, 8]
    assert searching_replicas(dataclasses.replace(node(), shape=(6, 8))) == [1, 2]


def refuse(*args: object) -> None:
    raise RunError("no")
