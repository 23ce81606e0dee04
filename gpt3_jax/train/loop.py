"""The training run: data, state, compiled steps, and the loop around them.

The loop never waits for the device but to read metrics, and those one step late: the next step is already under way.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt3_jax.config import Config, to_yaml
from gpt3_jax.data.loader import Loader
from gpt3_jax.data.stream import HeldOut, Stream, open_heldout, open_stream
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.parallel import compiler_options, distributed
from gpt3_jax.parallel.mesh import batch_shards, make_mesh
from gpt3_jax.parallel.rules import batch_partition
from gpt3_jax.train.checkpoint import CheckpointStore
from gpt3_jax.train.evaluation import Evaluation, Evaluator
from gpt3_jax.train.host_memory import peak_resident, pinned_memory_is_full, predicted_peak
from gpt3_jax.train.integrity import array_checksums, named_leaves
from gpt3_jax.train.metrics import MetricsWriter
from gpt3_jax.train.resume import Data, make_record, recorded_sizes, require_same_run
from gpt3_jax.train.run_lock import RunLock
from gpt3_jax.train.schedule import BatchSchedule, BatchSize, batch_schedule, describe, deviations
from gpt3_jax.train.state import TrainState, abstract_state, init_state
from gpt3_jax.train.step import Metrics, make_step
from gpt3_jax.train.stopping import StopSignal
from gpt3_jax.train.telemetry import Telemetry

CHECKPOINTS = "checkpoints"


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    loss: float
    """Training loss of the last batch, in nats per token; NaN when there was nothing left to train."""
    tokens: int
    """Tokens consumed since the beginning of training."""
    checkpoint: Path
    """Folder that holds the run's checkpoints, the last at `tokens`."""
    evaluation: Evaluation | None
    """On held-out data at the end; None without such data or when stopped."""
    steps: int
    """Batches trained on now, since the start or the resume."""
    stopped: str
    """What asked for an early stop, e.g. "SIGTERM"; empty when training came to its end."""


def say_to_stderr(line: str) -> None:
    """One line for the person, in the lead process."""
    if distributed.is_lead():
        print(line, file=sys.stderr, flush=True)


def run(config: Config, say: Callable[[str], None] = say_to_stderr) -> Result:
    """Trains, or goes on training, what `config` describes. Resumes from the newest checkpoint in `train.run_dir`.

    Raises:
        UserError: data, mesh or batch that do not fit together; a run directory with another configuration, or in use.
        RunError: a loss that is not finite, a full disk, unreadable data or checkpoints.
    """
    distributed.start(config.distributed)
    mesh, tokenizer, schedule = check(config)
    for deviation in deviations(config, schedule, batch_shards(mesh)):
        say(deviation)
    stream, heldout = open_data(config, tokenizer)
    data = Data(stream.fingerprint, tokenizer.fingerprint)

    try:
        with RunLock(Path(config.train.run_dir), say):
            return _run(config, mesh, tokenizer, schedule, stream, heldout, data, say)
    except jax.errors.JaxRuntimeError as error:
        line = _device_error(error)
        if line is None:
            raise
        raise RunError(line) from error


def _run(
    config: Config,
    mesh: Mesh,
    tokenizer: Tokenizer,
    schedule: BatchSchedule,
    stream: Stream,
    heldout: HeldOut | None,
    data: Data,
    say: Callable[[str], None],
) -> Result:
    run_dir = Path(config.train.run_dir)
    store = CheckpointStore(
        run_dir / CHECKPOINTS,
        keep_last=config.checkpoint.keep_last,
        keep_every_tokens=config.checkpoint.keep_every_tokens,
        say=say,
    )
    found = store.newest_record()
    if found is not None:
        require_same_run(found[1], config, data, say)
    try:
        restored = store.restore(abstract_state(config, mesh)) if found is not None else None
        if restored is not None:
            if (
                found is not None and restored.record != found[1]
            ):  # fallen back from a damaged one: another record, another configuration
                require_same_run(restored.record, config, data, say)
            state = restored.state
            schedule = batch_schedule(config, batch_shards(mesh), recorded_sizes(restored.record, config), say)
            say(f"resuming from {run_dir / CHECKPOINTS} at {restored.tokens:,} tokens, step {restored.step}")
        else:
            state = init_state(config, mesh)
        if config.train.ramp_tokens:
            say(describe(config, schedule))
        record = make_record(config, schedule, data)
        if distributed.is_lead():
            _write_config(run_dir, config)
        return _Loop(config, mesh, stream, heldout, tokenizer, schedule, store, record, say).train(state)
    except Exception:
        _let_the_save_finish(store, say)
        raise


def _let_the_save_finish(store: CheckpointStore, say: Callable[[str], None]) -> None:
    """Before an error ends the run: a checkpoint that is being written is finished, or said to be lost.

    Several processes must not wait for each other here: the one that failed may be gone.
    """
    if (tokens := store.pending()) is None:
        return
    if jax.process_count() > 1:
        say(f"the checkpoint at {tokens:,} tokens was being written: it may be lost")
        return
    try:
        store.wait()
    except RunError as error:
        say(str(error))


def check(config: Config) -> tuple[Mesh, Tokenizer, BatchSchedule]:
    """The mesh, the tokenizer and the batch sizes: all that can be wrong before a file is read or written.

    Raises:
        UserError: they do not fit the devices, the model, or each other.
    """
    mesh = make_mesh(config.parallel)
    schedule = batch_schedule(config, batch_shards(mesh))
    abstract_state(config, mesh)
    make_step(config, mesh)  # which is not traced by it
    tokenizer = load_tokenizer(config.data.tokenizer)
    if tokenizer.n_vocab > config.model.n_vocab:
        raise UserError(
            f"data.tokenizer {config.data.tokenizer} has {tokenizer.n_vocab} tokens, model.n_vocab is "
            f"{config.model.n_vocab}; set model.n_vocab to {tokenizer.n_vocab}"
        )
    if config.train.tokens // config.model.n_ctx >= 2**32:
        raise UserError(
            f"train.tokens {config.train.tokens} is more than 2**32 sequences of model.n_ctx {config.model.n_ctx}; "
            "the position in the data is counted in 32 bits"
        )
    return mesh, tokenizer, schedule


def open_data(config: Config, tokenizer: Tokenizer) -> tuple[Stream, HeldOut | None]:
    """The training stream and, if there is any, the held-out one."""
    data, model = config.data, config.model
    if not data.train:
        raise UserError(
            "data.train is empty; give at least one source, e.g. --data.train '[{path: DIR}]' with a DIR written by "
            "`gpt3-jax data tokenize`"
        )
    stream = open_stream(data.train, model.n_ctx, data.seed, model.n_vocab, tokenizer.fingerprint)
    heldout = open_heldout(data.eval, model.n_ctx, model.n_vocab, tokenizer.fingerprint) if data.eval else None
    return stream, heldout


def _device_error(error: jax.errors.JaxRuntimeError) -> str | None:
    """The line for what the devices or the other processes did; None for what only a traceback explains."""
    if line := compiler_options.refused(error) or pinned_memory_is_full(error):
        return line
    why = " ".join(str(error).split())[:300]
    if "RESOURCE_EXHAUSTED" in why:
        return (
            f"out of memory on a device: {why}; lower train.microbatch, raise parallel.stage, spread the model over "
            "more devices (parallel.data, parallel.tensor), or set train.remat to full or offload"
        )
    gone = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "Gloo", "gloo", "Connection", "heartbeat", "NCCL")
    if jax.process_count() > 1 and any(sign in why for sign in gone):
        return f"process {jax.process_index()} lost touch with another, which has probably ended: {why}"
    return None


def _write_config(run_dir: Path, config: Config) -> None:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        temporary = run_dir / "config.yaml.tmp"
        temporary.write_text(to_yaml(config), encoding="utf-8")
        temporary.replace(run_dir / "config.yaml")
    except OSError as error:
        raise RunError(f"cannot write into {run_dir}: {error.strerror}; choose another train.run_dir") from None


class _Loop:
    """One run's parts, and the loop over its batches."""

    def __init__(
        self,
        config: Config,
        mesh: Mesh,
        stream: Stream,
        heldout: HeldOut | None,
        tokenizer: Tokenizer,
        schedule: BatchSchedule,
        store: CheckpointStore,
        record: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self._config, self._mesh, self._stream, self._schedule = config, mesh, stream, schedule
        self._heldout, self._tokenizer = heldout, tokenizer
        self._store, self._record, self._say = store, record, say
        self._rows = NamedSharding(mesh, batch_partition(mesh))
        self._ctx = config.model.n_ctx
        self._on_cpu = mesh.local_devices[0].platform == "cpu"

    def train(self, state: TrainState) -> Result:
        config = self._config
        run_dir = Path(config.train.run_dir)
        step, position, skipped = (int(n) for n in jax.device_get((state.step, state.sequences, state.skipped)))
        first_step = step
        steps, evaluator = self._compile(state, position)
        writer = None
        if distributed.is_lead():
            writer = MetricsWriter(run_dir, position * self._ctx, config.train.tensorboard)
        telemetry = Telemetry(config, self._mesh, self._schedule, position, skipped, writer, self._say)
        batches = Loader(self._stream, self._rows, config.data.prefetch).batches(
            (first, size.sequences) for first, size in self._schedule.batches(position)
        )
        with contextlib.ExitStack() as cleanup:
            stop = cleanup.enter_context(StopSignal())
            if writer is not None:
                cleanup.callback(writer.close)
            cleanup.enter_context(telemetry)
            cleanup.callback(batches.close)

            pending: tuple[int, int, BatchSize, Metrics] | None = None
            for first, size in self._schedule.batches(position):
                if stop.requested():
                    break
                self._store.check()
                rows = next(batches)
                with jax.transfer_guard("disallow"):
                    state, metrics = steps[size.sequences](state, rows)
                self._note(telemetry, pending)
                step, position = step + 1, first + size.sequences
                pending = (step, first, size, metrics)
                evaluates = self._due(config.train.eval_tokens, first, position)
                saves = self._due(config.checkpoint.every_tokens, first, position)
                if evaluates or saves:  # not before this step is known to be sound
                    self._note(telemetry, pending)
                    pending = None
                if evaluates:
                    self._evaluate(evaluator, telemetry, state, position)
                if saves:
                    self._save(state, step, position)
            self._note(telemetry, pending)
            with telemetry.pause("saving a checkpoint"):
                self._save(state, step, position)
            done = position >= self._schedule.total_sequences
            evaluation = self._evaluate(evaluator, telemetry, state, position) if done else None
            with telemetry.pause("waiting for the checkpoint to be on disk"):
                self._store.close()
        if self._on_cpu:
            self._say(f"memory of this process at its peak: {peak_resident() / 2**30:.2f} GiB")
        stopped = "" if done else stop.reason
        steps_made = step - first_step
        return Result(telemetry.loss, position * self._ctx, run_dir / CHECKPOINTS, evaluation, steps_made, stopped)

    def _compile(self, state: TrainState, position: int) -> tuple[dict[int, Any], Evaluator | None]:
        """Steps by batch size, for every size from here to the end, and the evaluation, before the first step."""
        config, mesh = self._config, self._mesh
        started = time.monotonic()
        sizes = [size.sequences for size in self._schedule.ahead(position)]
        what = [f"the step for batches of {', '.join(map(str, sizes))} sequences"] if sizes else []
        what += ["the evaluation"] if self._heldout else []
        if what:
            self._say(f"compiling {' and '.join(what)}")
        abstract = abstract_state(config, mesh)
        steps = {}
        for size in self._schedule.ahead(position):
            rows = jax.ShapeDtypeStruct((size.sequences, self._ctx + 1), jnp.int32, sharding=self._rows)
            steps[size.sequences] = make_step(config, mesh, size.microbatches).lower(abstract, rows).compile()
        evaluator = None
        if self._heldout:
            per_pass = max(size.sequences // size.microbatches for size in self._schedule.sizes)
            evaluator = Evaluator(config, mesh, self._heldout, self._tokenizer, per_pass)
        array_checksums(named_leaves(state))  # compiles what the first checkpoint will call
        if what:
            self._say(f"compiled in {time.monotonic() - started:.1f} s, batch sizes: {len(steps)}")
        if steps and self._on_cpu and (peak := predicted_peak(steps.values(), jax.local_device_count())):
            self._say(f"this process will take about {peak / 2**30:.2f} GiB of memory at its peak")
        return steps, evaluator

    def _due(self, every_tokens: int, first: int, position: int) -> bool:
        """Whether the batch of sequences first .. position - 1 reaches a multiple of `every_tokens`, before the end."""
        reached = first * self._ctx // every_tokens != position * self._ctx // every_tokens
        return reached and position < self._schedule.total_sequences

    def _note(self, telemetry: Telemetry, pending: tuple[int, int, BatchSize, Metrics] | None) -> None:
        """Reads a step's metrics, which waits for the step, and acts on them."""
        if pending is None:
            return
        step, first, size, metrics = pending
        values = jax.device_get(metrics)
        if not values.finite:
            self._not_finite(step, first, size, float(values.loss), float(values.grad_norm))
        telemetry.step(step, first, size, values)

    def _not_finite(self, step: int, first: int, size: BatchSize, loss: float, norm: float) -> None:
        last = first + size.sequences - 1
        where = self._stream.locate(np.array([first, last]))
        line = (
            f"loss {loss} and gradient norm {norm} are not both finite at step {step}, sequences {first} to {last} "
            f"(from {where[0]} to {where[1]})"
        )
        if self._config.train.nonfinite == "skip":
            self._say(f"{line}; update skipped")
            return
        failed = ""
        try:
            self._store.wait()
        except RunError as error:  # two misfortunes, one line: neither may hide the other
            failed = f"; and {error}"
        tokens = self._store.last_good()
        good = "no checkpoint was written" if tokens is None else f"the last good checkpoint is at {tokens:,} tokens"
        raise RunError(
            f"{line}; {good} in {self._store.directory}; the state was not updated: lower optimizer.peak_lr, look at "
            f"the data, or go on past this batch by --train.nonfinite skip{failed}"
        )

    def _evaluate(
        self, evaluator: Evaluator | None, telemetry: Telemetry, state: TrainState, position: int
    ) -> Evaluation | None:
        if evaluator is None:
            return None
        with telemetry.pause("evaluating on held-out data"):
            evaluation = evaluator(state.params)
        telemetry.evaluation(position * self._ctx, evaluation)
        return evaluation

    def _save(self, state: TrainState, step: int, position: int) -> None:
        if position:
            self._store.save(position * self._ctx, step, state, self._record)
