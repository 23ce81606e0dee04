"""The training run: its state, its compiled steps, and the loop around them.

The loop waits for the device only to read metrics, one step late, when the next step is already dispatched. (A CPU runs
a step where it is dispatched: `host_memory.run_in_turn`.) Everything else that happens between steps is a hook
(`gpt3_jax.train.hooks`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from gpt3_jax.cluster import compilation_cache, start_up
from gpt3_jax.cluster.agreement import is_lead
from gpt3_jax.cluster.device_errors import device_error
from gpt3_jax.cluster.log import log
from gpt3_jax.cluster.run_lock import RunLock
from gpt3_jax.cluster.shared_folder import require_shared
from gpt3_jax.cluster.start import start
from gpt3_jax.cluster.stopping import StopSignal
from gpt3_jax.config import Config, from_dict, replace
from gpt3_jax.data.loader import Loader
from gpt3_jax.errors import RunError, UserError, require_type
from gpt3_jax.parallel.mesh import batch_shards
from gpt3_jax.parallel.rules import batch_partition
from gpt3_jax.train.checkpoint.resume import make_record, recorded_sizes, require_same_run
from gpt3_jax.train.checkpoint.run_folder import CHECKPOINTS, write_config
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.evaluation import Evaluation
from gpt3_jax.train.hooks.checkpoints import SaveCheckpoints
from gpt3_jax.train.hooks.evaluate import Evaluate
from gpt3_jax.train.hooks.hook import Hook, Moment, Step
from gpt3_jax.train.hooks.host_memory import GiveBackMemory
from gpt3_jax.train.hooks.not_finite import StopIfNotFinite
from gpt3_jax.train.hooks.telemetry import Telemetry
from gpt3_jax.train.host_memory import give_back, peak_resident, predicted_peak, temporary_bytes
from gpt3_jax.train.metrics import MetricsWriter
from gpt3_jax.train.schedule import batch_schedule, describe, deviations
from gpt3_jax.train.setup import Checked, Run, check, open_run
from gpt3_jax.train.state import abstract_state, init_state
from gpt3_jax.train.step import make_step, unroll

MakeHook = Callable[[Run, Telemetry], Hook]


@dataclasses.dataclass(frozen=True)
class Result:
    """How a run ended."""

    loss: float
    """Training loss of the last batch, in nats per token; NaN if nothing was left to train."""
    tokens: int
    """Tokens consumed since the beginning of training."""
    checkpoint: Path
    """Folder of the run's checkpoints, the last of which is at `tokens`."""
    evaluation: Evaluation | None
    """On held-out data at the end; None without such data or when stopped."""
    steps: int
    """Batches in this call, since the start or the resume."""
    stopped: str
    """Why training stopped early, e.g. "SIGTERM"; empty if it reached its end."""


def run(config: Config, checked: Checked | None = None, hooks: Sequence[MakeHook] = ()) -> Result:
    """Trains what `config` describes. Resumes from the newest checkpoint in `train.run_dir`.

    Progress goes to the logger ``gpt3_jax``: from Python, ``logging.basicConfig(level="INFO")`` shows it. On a CPU
    whose JAX devices have not started, it turns `jax_cpu_enable_async_dispatch` off (`host_memory.run_in_turn`).

    Args:
        checked: the result of `setup.check`, if the processes have joined and it has been called already.
        hooks: more actions of the loop, each made from the run and its telemetry once both exist. The evaluation of
            `config.evals` is one of them: ``hooks=[gpt3_jax.evals.EvaluateTasks]``.

    Raises:
        UserError: `evals.tasks` without a hook; data, mesh or batch do not fit together; the run folder has another
            configuration, or is in use.
        RunError: a loss that is not finite, a full disk, unreadable data or checkpoints.
    """
    require_type("config", config, Config, "a gpt3_jax.Config, as gpt3_jax.load_config gives it")
    if config.evals.tasks and not hooks:
        raise UserError(
            f"evals.tasks is {', '.join(config.evals.tasks)}, and no hook evaluates them; call train.run(config, "
            "hooks=[gpt3_jax.evals.EvaluateTasks]), or leave evals.tasks empty"
        )
    if checked is None:
        start(config.distributed)
        checked = check(config)
    compilation_cache.keep_if_shared()
    run = open_run(config, checked)
    require_shared(run.folder)
    start_up.mark("data")
    try:
        with RunLock(run.folder):
            return _run(run, hooks)
    except jax.errors.JaxRuntimeError as error:
        line = device_error(error)
        if line is None:
            raise
        raise RunError(line) from error


def _run(run: Run, more: Sequence[MakeHook]) -> Result:
    config, folder = run.config, run.folder / CHECKPOINTS
    asked = config
    store = CheckpointStore(
        folder, keep_last=config.checkpoint.keep_last, keep_every_tokens=config.checkpoint.keep_every_tokens
    )
    found = store.newest_record()
    if found is not None:
        require_same_run(found[1], config, run.data)
    restored = store.restore(abstract_state(config, run.mesh)) if found is not None else None
    if restored is not None:
        if found is not None and restored.record != found[1]:
            # Restored from an earlier checkpoint, because the newest is damaged. Its record may have another
            # configuration.
            require_same_run(restored.record, config, run.data)
        sizes = recorded_sizes(restored.record, config)
        run = dataclasses.replace(run, schedule=batch_schedule(config, batch_shards(run.mesh), sizes))
        log.info(f"resuming from {folder} at {restored.tokens:,} tokens, step {restored.step}")
    config = _settled(config, run.mesh, None if restored is None else restored.record)
    run = dataclasses.replace(run, config=config)
    state = restored.state if restored is not None else init_state(config, run.mesh)
    for deviation in deviations(config, run.schedule, batch_shards(run.mesh)):
        log.warning(deviation)
    if config.train.ramp_tokens:
        log.info(describe(config, run.schedule))
    if is_lead():
        write_config(run.folder, asked)

    step, sequences, skipped = (int(n) for n in jax.device_get((state.step, state.sequences, state.skipped)))
    tokens = sequences * config.model.n_ctx
    writer = MetricsWriter(run.folder, tokens, config.train.tensorboard) if is_lead() else None
    telemetry = Telemetry(run, tokens, skipped, writer)
    evaluate = Evaluate(run, telemetry)
    save = SaveCheckpoints(run, store, make_record(config, run.schedule, run.data), telemetry)
    hooks: list[Hook] = [StopIfNotFinite(run, store), telemetry, save, evaluate]
    hooks += [make(run, telemetry) for make in more]
    if _on_cpu(run):
        hooks.append(GiveBackMemory())
    start_up.mark("state")
    end, stopped = _train(run, Moment(step, tokens, state, False), hooks)
    if _on_cpu(run):
        log.info(f"memory of this process at its peak: {peak_resident() / 2**30:.2f} GiB")
    return Result(telemetry.loss, end.tokens, folder, evaluate.last, end.steps - step, stopped)


def _settled(config: Config, mesh: Mesh, record: dict[str, Any] | None) -> Config:
    """The configuration that is compiled and that checkpoints record: with the number that `memory.unroll` 0 stands
    for. The run folder's config.yaml keeps the 0, which means another number on another machine."""
    if config.memory.unroll:
        return config
    begun = 0 if record is None else from_dict(record["config"]).memory.unroll
    periods = unroll(config, mesh, begun)
    if periods > 1:
        log.info(
            f"memory.unroll is {periods} here: without a loop over the {config.model.n_layers} layers, a CPU is about "
            "a tenth faster"
        )
    return replace(config, memory={"unroll": periods})


def _train(run: Run, now: Moment, hooks: Sequence[Hook]) -> tuple[Moment, str]:
    """Trains from `now` to the end, or until a signal asks for a stop. Returns the final moment and the signal's
    name."""
    n_ctx = run.config.model.n_ctx
    rows_sharding = NamedSharding(run.mesh, batch_partition(run.mesh))
    total = run.schedule.total_sequences * n_ctx
    programs = _compile(run, now, hooks, rows_sharding)
    loader = Loader(run.stream, rows_sharding, run.config.data.prefetch)
    with contextlib.ExitStack() as cleanup:
        stop = cleanup.enter_context(StopSignal())
        for hook in hooks:
            cleanup.enter_context(hook)
        batches = cleanup.enter_context(contextlib.closing(loader.batches(run.schedule.batches(now.tokens // n_ctx))))
        late: Step | None = None
        """A dispatched step whose metrics have not been read."""

        def see() -> None:
            nonlocal late
            if late is not None:
                step, late = dataclasses.replace(late, metrics=jax.device_get(late.metrics)), None
                for hook in hooks:
                    hook.see(step)

        state, steps, tokens = now.state, now.steps, now.tokens
        while tokens < total and not stop.requested():
            batch, rows = next(batches)
            with jax.transfer_guard("disallow"):
                state, metrics = programs[batch.sequences](state, rows)
            if steps == now.steps:
                jax.block_until_ready(metrics)
                start_up.mark("step")
                start_up.say()
            see()
            steps, before, tokens = steps + 1, tokens, (batch.first + batch.sequences) * n_ctx
            late = Step(steps, batch, metrics)
            if tokens < total:
                due = [hook for hook in hooks if (n := hook.every_tokens) and before // n != tokens // n]
                if due:
                    see()
                for hook in due:
                    hook.act(Moment(steps, tokens, state, False))
        see()
        end = Moment(steps, tokens, state, tokens >= total)
        for hook in hooks:
            hook.end(end)
    return end, "" if end.done else stop.reason


def _compile(run: Run, now: Moment, hooks: Sequence[Hook], rows: NamedSharding) -> dict[int, Any]:
    """Compiles the steps for all remaining batch sizes, and what hooks call. Returns the steps by batch size."""
    started = time.monotonic()
    config, mesh = run.config, run.mesh
    ahead = run.schedule.ahead(now.tokens // config.model.n_ctx)
    what = [f"the step for batches of {', '.join(str(size.sequences) for size in ahead)} sequences"] if ahead else []
    what += [hook.compiles for hook in hooks if hook.compiles]
    if what:
        log.info(f"compiling {' and '.join(what)}")
    abstract = abstract_state(config, mesh)
    programs = {}
    for size in ahead:
        shape = jax.ShapeDtypeStruct((size.sequences, config.model.n_ctx + 1), jnp.int32, sharding=rows)
        traced = make_step(config, mesh, size.microbatches).trace(abstract, shape)
        start_up.mark("tracing")
        lowered = traced.lower()
        start_up.mark("lowering")
        programs[size.sequences] = lowered.compile()
        start_up.mark("compiling")
    for hook in hooks:
        hook.prepare(now)
    start_up.mark("hooks")
    if what:
        log.info(f"compiled in {time.monotonic() - started:.1f} s, batch sizes: {len(programs)}")
    if programs and _on_cpu(run):
        temporary = temporary_bytes(programs.values())
        give_back(temporary)
        if peak := predicted_peak(temporary):
            log.info(f"this process will take up to about {peak / 2**30:.2f} GiB of memory")
    return programs


def _on_cpu(run: Run) -> bool:
    return run.mesh.local_devices[0].platform == "cpu"
