"""The training step of a configuration, compiled for a topology that need not be attached."""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from gpt3_jax.cluster.device_errors import refused_option
from gpt3_jax.config import Config
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.model.params import param_table
from gpt3_jax.parallel.mesh import DATA, TENSOR, batch_shards, make_mesh
from gpt3_jax.parallel.rules import TENSOR_RULES, batch_partition, shardings
from gpt3_jax.plan.topologies import Topology, missing_library
from gpt3_jax.program.buffers import Peak, Shapes, read_peak
from gpt3_jax.program.compiled import dump_options, dumped_text, lower, without_cache
from gpt3_jax.program.hlo import Program
from gpt3_jax.program.traffic import Collective, count
from gpt3_jax.train.schedule import BatchSize, batch_schedule
from gpt3_jax.train.state import abstract_state
from gpt3_jax.train.step import make_step


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """The step that `gpt3-jax train` would run on the topology, at the full batch."""

    config: Config
    topology: Topology
    mesh: Mesh
    batch: BatchSize
    """The full batch: sequences, microbatches."""
    jaxpr: Any
    program: Program
    peak: Peak
    code: int
    """Bytes of the program itself on each device; 0 where the compiler does not say (GPU)."""
    results: int
    """Bytes of the results that take no argument's place: the metrics; 0 where the compiler refused the program."""
    too_large: str
    """The compiler's message if it refused the program for its memory, else empty."""
    trace_seconds: float
    lower_seconds: float
    compile_seconds: float

    @property
    def total_bytes(self) -> int:
        """Bytes that a device needs: state, batch, the temporaries' heap, new results, and the program."""
        return self.peak.arguments + self.peak.temporaries + self.results + self.code

    @functools.cached_property
    def collectives(self) -> list[Collective]:
        """The collectives that the traced program states."""
        return count(self.jaxpr)


def compile_step(config: Config, topology: Topology) -> CompiledStep:
    """Traces, lowers and compiles the step of the full batch.

    Raises:
        UserError: a compiler's library is missing (cuDNN), or the mesh does not divide the devices, the batch or a
            parameter.
        RunError: the compiler fails for another reason than memory.
    """
    mesh = make_mesh(config.parallel, topology.devices)
    shards = batch_shards(mesh)
    batch = max(batch_schedule(config, shards).sizes, key=lambda s: s.sequences)
    rows = jax.ShapeDtypeStruct(
        (batch.sequences, config.model.n_ctx + 1), jnp.int32, sharding=shardings(batch_partition(mesh), mesh)
    )
    step = make_step(config, mesh, batch.microbatches)
    try:
        low = lower(step, abstract_state(config, mesh), rows)
    except (NotImplementedError, RuntimeError) as error:
        if line := missing_library(error):
            raise UserError(line) from None
        raise
    started = time.perf_counter()
    with without_cache():
        code, results, too_large, program, peak = compile_lowered(low.lowered, _shapes(config, mesh))
    return CompiledStep(
        config,
        topology,
        mesh,
        batch,
        low.jaxpr,
        program,
        peak,
        code,
        results,
        too_large,
        low.trace_seconds,
        low.lower_seconds,
        time.perf_counter() - started,
    )


class Outcome(NamedTuple):
    """What the compiler made of a lowered program; the fields are those of `CompiledStep`."""

    code: int
    results: int
    too_large: str
    program: Program
    peak: Peak


def compile_lowered(lowered: Any, shapes: Shapes) -> Outcome:
    """Compiles, and reads the program and its memory from what the compiler writes, also when it refuses the program
    for its memory.

    Raises:
        RunError: the compiler fails for another reason, or wrote nothing that can be read.
    """
    code, results, too_large = 0, 0, ""
    with tempfile.TemporaryDirectory(prefix="gpt3-jax-plan-") as folder:
        try:
            compiled = lowered.compile(compiler_options=dump_options(folder))
        except jax.errors.JaxRuntimeError as error:
            too_large = _memory_complaint(error)
        else:
            stats: Any = compiled.memory_analysis()
            code = int(stats.generated_code_size_in_bytes)
            results = max(0, int(stats.output_size_in_bytes) - int(stats.alias_size_in_bytes))
        program = Program(dumped_text(Path(folder)))
        return Outcome(code, results, too_large, program, read_peak(Path(folder), program, shapes))


def _memory_complaint(error: jax.errors.JaxRuntimeError) -> str:
    """The compiler's words about memory, in one line.

    Raises:
        RunError: it complains about something else.
    """
    text = " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" not in text:
        line = refused_option(error) or missing_library(error)
        raise RunError(line or f"the compiler failed: {text[:400]}") from None
    found = re.search(r"(Ran out of memory|the total memory required).*?(?=\. |$)", text)
    return found[0] if found else text[:200]


def _shapes(config: Config, mesh: Mesh) -> Shapes:
    """Shapes of weights on one device."""
    model = config.model
    block: set[tuple[int, ...]] = set()
    top: set[tuple[int, ...]] = set()
    shards: set[tuple[int, ...]] = set()
    for spec in jax.tree.leaves(param_table(model)):
        dims, axes = (spec.shape[1:], spec.axes[1:]) if spec.stacked else (spec.shape, spec.axes)
        whole = [d // mesh.shape[TENSOR] if TENSOR_RULES[a] == TENSOR else d for d, a in zip(dims, axes, strict=True)]
        shard = list(whole)
        shard[spec.zero_dim] //= mesh.shape[DATA]
        for shape, known in ((whole, block), (shard, shards)) if spec.stacked else ((whole, top),):
            forms = [shape] if len(shape) < 3 else [shape, [shape[0], shape[1] * shape[2]]]  # q, k, v side by side
            known.update(tuple(sorted(d for d in form if d != 1)) for form in forms)
    periods = model.n_layers // len(model.attention_pattern)
    vocab = model.n_vocab_padded // mesh.shape[TENSOR]
    stacks = frozenset({model.n_layers, periods})
    inside = config.parallel.stage == 3
    return Shapes(frozenset(block), frozenset(top), frozenset(shards), vocab, inside, stacks)
