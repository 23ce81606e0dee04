"""Measures the training step: the same compiled program that `train` runs, on random tokens already on the devices."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt3_jax.bench import mfu
from gpt3_jax.bench.machine import capacity, peak_memory
from gpt3_jax.bench.timing import Spread, repetitions
from gpt3_jax.bench.workload import Workload, make_workload
from gpt3_jax.cluster.device_errors import out_of_memory, pinned_memory_is_full
from gpt3_jax.cluster.log import log
from gpt3_jax.config import Config
from gpt3_jax.devices import XLA_GPU_FRACTION_DEFAULT, XLA_GPU_FRACTION_VARIABLE
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.parallel.mesh import batch_shards, make_mesh, mesh_platform
from gpt3_jax.parallel.rules import batch_partition, shardings
from gpt3_jax.plan.receipt import Flops, step_flops
from gpt3_jax.program import compiled as program
from gpt3_jax.train.host_memory import give_back, temporary_bytes
from gpt3_jax.train.state import abstract_state, init_state
from gpt3_jax.train.step import make_step

STEPS, BUDGET_S = 20, 20.0
"""Default number of steps, in each way of running them, and the time that they may take."""


@dataclasses.dataclass(frozen=True)
class StepTimes:
    """The measured times."""

    loop: Spread
    """Seconds between the metrics of successive steps, dispatched as in the training loop: each step is dispatched
    before the previous step's metrics are read."""
    waited: Spread
    """Seconds of a step that finishes before the next is dispatched."""
    tokens_per_second: float
    """Of the training loop's way, over all its steps."""
    warmup: int
    trace_seconds: float
    lower_seconds: float
    compile_seconds: float
    memory: dict[str, int]
    """Peak memory in bytes, by source."""
    flops: Flops
    peaks: list[mfu.Peak]
    utilisations: list[mfu.Utilisation]
    note: str
    """What could not be measured, for the user; empty if nothing is missing."""
    loss: float
    """Loss of the last step."""


class StepBench:
    """A compiled step with its state and a batch, ready to run.

    Raises:
        UserError: the step does not fit the devices.
        RunError: the devices run out of memory.
    """

    def __init__(self, config: Config, keep_batch: bool) -> None:
        mesh = make_mesh(config.parallel)
        self.work = make_workload(config, mesh, keep_batch)
        while True:
            try:
                log.info(f"compiling the step for {self.work.batch.sequences} sequences")
                self.program = self._compile(self.work)
                self._require_room()
                self.state: Any = jax.block_until_ready(init_state(self.work.config, mesh))
                if mesh_platform(mesh) == "cpu":
                    give_back(temporary_bytes([self.program.run]))
                self.rows: Any = _random_rows(self.work)
                self._first = self._once()
                return
            except jax.errors.JaxRuntimeError as error:
                if not out_of_memory(error):
                    raise
                self.state = self.rows = None
                sequences = self.work.shard_sequences
                if keep_batch or config.memory.microbatch or sequences == 1:
                    raise RunError(_too_large(self.work, error)) from None
                log.info(f"{sequences} sequences on a data shard do not fit; trying {sequences // 2}")
                self.work = make_workload(config, mesh, keep_batch, sequences // 2)

    def _compile(self, work: Workload) -> program.Compiled:
        rows = jax.ShapeDtypeStruct(
            (work.batch.sequences, work.config.model.n_ctx + 1),
            jnp.int32,
            sharding=shardings(batch_partition(work.mesh), work.mesh),
        )
        step = make_step(work.config, work.mesh, work.batch.microbatches)
        return program.compile_program(step, abstract_state(work.config, work.mesh), rows)

    def _require_room(self) -> None:
        """Raises on a CPU, where the system would otherwise kill a process that takes too much memory, without a
        message."""
        device = self.work.mesh.devices.flat[0]
        room = capacity(device)
        if device.platform == "cpu" and room is not None and self.program.bytes > room:
            raise UserError(
                f"the step needs {self.program.bytes / 2**30:,.1f} GiB on a device and "
                f"{room / 2**30:,.1f} GiB are left; lower train.batch_tokens or memory.microbatch, set memory.remat to "
                "full, or take a smaller model"
            )

    def _once(self) -> float:
        started = time.perf_counter()
        self.state, metrics = self.program.run(self.state, self.rows)
        jax.block_until_ready((self.state, metrics))
        return time.perf_counter() - started

    def measure(self, steps: int | None, warmup: int) -> StepTimes:
        """Times the step both ways, after `warmup` steps. The first of these showed that the step fits.

        Args:
            steps: number of steps for each way; None: `STEPS`, or as many as fit into `BUDGET_S`.
            warmup: at least 1.

        Raises:
            RunError: the loss is not finite, so the step did not do its work.
        """
        last = [self._first, *(self._once() for _ in range(warmup - 1))][-1]
        count = repetitions(steps, last, STEPS, BUDGET_S)
        waited = [self._once() for _ in range(count)]
        intervals, loss = self.loop(count)
        if not np.isfinite(loss):
            raise RunError(f"the loss of the measured steps is {loss}: their times would mean nothing")
        work, mesh = self.work, self.work.mesh
        flops = step_flops(work.config.model, work.tokens, self.program.jaxpr)
        peaks, note = mfu.peaks(mesh, work.config.model.dtype)
        loop = Spread.of(intervals)
        return StepTimes(
            loop=loop,
            waited=Spread.of(waited),
            tokens_per_second=work.tokens * count / sum(intervals),
            warmup=warmup,
            trace_seconds=self.program.trace_seconds,
            lower_seconds=self.program.lower_seconds,
            compile_seconds=self.program.compile_seconds,
            memory=peak_memory(mesh.local_devices[0], self.program.bytes),
            flops=flops,
            peaks=peaks,
            utilisations=mfu.utilisations(flops, mesh.size, loop.median, peaks),
            note=note,
            loss=loss,
        )

    def loop(self, count: int) -> tuple[list[float], float]:
        """Runs steps as the training loop does. Returns the seconds between their metrics, and the last loss."""
        intervals: list[float] = []
        pending: Any = None
        started = time.perf_counter()
        for _ in range(count):
            self.state, metrics = self.program.run(self.state, self.rows)
            if pending is not None:
                jax.device_get(pending)
                now = time.perf_counter()
                intervals.append(now - started)
                started = now
            pending = metrics
        loss = float(jax.device_get(pending).loss)
        jax.block_until_ready(self.state)
        intervals.append(time.perf_counter() - started)
        return intervals, loss


def _random_rows(work: Workload) -> jax.Array:
    """Random tokens [sequences, n_ctx + 1], sharded as the loader does; the same in every process."""
    shape = (work.batch.sequences, work.config.model.n_ctx + 1)
    rows = np.random.default_rng(0).integers(0, work.config.model.n_vocab, shape, np.int32)
    return jax.make_array_from_callback(
        shape, shardings(batch_partition(work.mesh), work.mesh), lambda index: rows[index]
    )


def _too_large(work: Workload, error: jax.errors.JaxRuntimeError) -> str:
    if line := pinned_memory_is_full(error):
        return line
    why = " ".join(str(error).split())[:200]
    shards = batch_shards(work.mesh)
    more = ""
    if work.mesh.devices.flat[0].platform == "gpu":
        more = f"; XLA takes {XLA_GPU_FRACTION_DEFAULT} of a GPU's memory unless {XLA_GPU_FRACTION_VARIABLE} is set"
    return (
        f"{work.batch.sequences} sequences in {work.batch.microbatches} microbatches on {shards} data shards do not "
        f"fit the devices: {why}; lower memory.microbatch, raise parallel.stage, spread the model over more devices, "
        f"or set memory.remat to full or offload{more}"
    )
