"""`gpt3-jax bench`: measures what a configuration does on the attached devices."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import re
import tempfile
from collections.abc import Callable
from typing import Any

from gpt3_jax.cluster.log import log
from gpt3_jax.config import Config, SourceConfig, load_config, split_overrides
from gpt3_jax.environment import cpu_only, start_devices
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.paths import local_path

PARTS = ("step", "decode", "loader", "checkpoint")
"""What `all` measures."""
ALONE = ("evaluate", "startup", "ceilings")

_USAGE = """gpt3-jax bench [step|decode|loader|checkpoint|evaluate|startup|ceilings|all] [--config FILE ...]
                      [options] [--SECTION.KEY VALUE ...]"""

_DESCRIPTION = """Measures on the attached devices: the training step that train runs (step, the default), generation
(decode), reading data in training's order (loader), saving and restoring (checkpoint), or all of them. Without a
configuration, it uses the quickstart's. evaluate measures how fast choices and texts are scored; startup the time from
the command to the first step, by phase, without and with compiled programs of an earlier start; ceilings the machine
alone: a large bf16 matmul and a copy."""

_EPILOG = """examples:
  gpt3-jax bench --config gpt3-small
  gpt3-jax bench --config gpt3-xl --config mesh-h100-8 --memory.microbatch 16 --profile
  gpt3-jax bench all --config gpt3-small --json

The step takes one microbatch on each data shard; --train.batch_tokens sets a whole batch, accumulated as in training.
exit codes: 0 measured; 1 something failed while running; 2 what was asked for is wrong"""


def main(argv: list[str]) -> int:
    """Measures, prints the results, and returns the exit code.

    Raises:
        UserError: the arguments are wrong, or this machine cannot run the measurement.
        RunError: something failed while running.
    """
    own, overrides = split_overrides(argv)
    parser = _parser()
    args, unknown = parser.parse_known_intermixed_args(own)
    if unknown:
        near = difflib.get_close_matches(unknown[0], re.findall(r"--[\w-]+", parser.format_help()), n=1)
        hint = f"; the nearest is {near[0]}" if near else "; gpt3-jax bench --help explains them"
        raise UserError(f"unknown option {unknown[0]}{hint}")
    if args.what not in (*PARTS, *ALONE, "all"):
        raise UserError(
            f"bench cannot measure {args.what!r}; expected {', '.join((*PARTS, *ALONE))} or all (give a "
            "configuration as --config FILE, and token sources after loader)"
        )
    parts = PARTS if args.what == "all" else (args.what,)
    _check(args, parts)
    names = args.config or ["quickstart"]
    # A step has one batch size. The ramp is turned off, because its start may be above the given batch size.
    overrides = ["--train.ramp_tokens", "0", *overrides]
    config = load_config(names, overrides)
    keep_batch = any(option.partition("=")[0] == "--train.batch_tokens" for option in overrides)
    _prepare(config, keep_batch, parts)
    from gpt3_jax.cluster.leaving import NoneLeftWaiting
    from gpt3_jax.cluster.same_run import require_same_program
    from gpt3_jax.cluster.start import shutdown, start

    start(config.distributed)
    with NoneLeftWaiting():
        start_devices(compiles_ahead=True)
        require_same_program(config)
        code = _Bench(args, config, names, overrides, keep_batch).run(parts)
        shutdown()
    return code


_OPTIONS = {
    "step": ("steps", "warmup", "profile"),
    "decode": ("prompt_tokens", "new_tokens", "rows", "weights"),
    "loader": ("gigabytes", "n_ctx", "batch", "batches"),
    "evaluate": ("items", "context_tokens"),
}
"""The options that only one part uses. They are refused with other parts."""


def _check(args: argparse.Namespace, parts: tuple[str, ...]) -> None:
    from gpt3_jax.bench.storage import require_folder

    for name in (name for names in _OPTIONS.values() for name in names if name not in ("profile", "weights")):
        if (value := getattr(args, name)) is not None and not 0 < value < math.inf:
            raise UserError(f"--{name.replace('_', '-')} is {value}; expected more than 0")
    if args.repeat <= 0:
        raise UserError(f"--repeat is {args.repeat}; expected more than 0")
    if args.sources and "loader" not in parts:
        raise UserError(f"unexpected argument {args.sources[0]!r}: only bench loader reads sources")
    for part, names in _OPTIONS.items():
        for name in names:
            if part not in parts and getattr(args, name) != _parser().get_default(name):
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{option} is an option of bench {part}; leave it out, or measure that (or all)")
    args.folder = require_folder(args.folder)


def _prepare(config: Config, keep_batch: bool, parts: tuple[str, ...]) -> None:
    """What must be done before JAX starts its threads; see `train`."""
    from gpt3_jax.bench.workload import cpu_shard_sequences, with_batch
    from gpt3_jax.train.host_memory import keep_freed_memory, run_in_turn, step_bytes

    if cpu_only():
        import jax

        # If libtpu is installed only for planning, its profiler ends the process, because there is no TPU.
        jax.config.update("jax_platforms", "cpu")
        run = config if keep_batch else with_batch(config, cpu_shard_sequences(config), 1)
        keep_freed_memory(step_bytes(run))
        if "step" in parts:
            run_in_turn()


class _Bench:
    """One call of the command."""

    def __init__(
        self, args: argparse.Namespace, config: Config, names: list[str], overrides: list[str], keep_batch: bool
    ) -> None:
        self._args, self._config, self._names, self._keep_batch = args, config, names, keep_batch
        self._overrides = overrides
        self._result: dict[str, Any] = {}
        self._texts: list[str] = []

    def run(self, parts: tuple[str, ...]) -> int:
        """Measures the parts. With several parts, skips those that fail, with a message."""
        import jax

        from gpt3_jax.bench import machine, table
        from gpt3_jax.cluster.agreement import is_lead, together

        self._result["machine"] = machine.describe(jax.devices())
        self._texts.append(table.machine(self._result["machine"]))
        measures: dict[str, Callable[[], None]] = {
            "step": self._step, "decode": self._decode, "loader": self._loader, "checkpoint": self._checkpoint,
            "evaluate": self._evaluate, "startup": self._startup, "ceilings": self._ceilings,
        }  # fmt: skip
        code = 0
        for part in parts:
            try:
                with together(f"measuring {part}"):  # all processes finish before any begins the next part
                    measures[part]()
            except (UserError, RunError) as error:
                if len(parts) == 1:
                    raise
                log.warning(f"gpt3-jax: error: {part}: {error}")
                self._result[part] = {"error": str(error)}
                self._texts.append(f"{part}: not measured: {error}")
                code = max(code, error.exit_code)
        if is_lead():
            print(json.dumps(self._result, indent=1) if self._args.json else "\n\n".join(self._texts), flush=True)
        return code

    def _step(self) -> None:
        from gpt3_jax.bench import table, workload
        from gpt3_jax.bench.profile import profile
        from gpt3_jax.bench.step import StepBench

        bench = StepBench(self._config, self._keep_batch)
        ran = workload.describe(bench.work, self._names)
        log.info(f"measuring steps of {bench.work.tokens:,} tokens")
        times = bench.measure(self._args.steps, self._args.warmup)
        self._result["ran"] = ran
        self._result["step"] = dataclasses.asdict(times)
        self._texts += [f"{table.model(ran)}\n{table.work(ran)}", table.step(times)]
        if self._args.profile:
            log.info("tracing three steps")
            found = profile(bench, 3)
            self._result["profile"] = dataclasses.asdict(found)
            self._texts.append(table.profile(found))

    def _decode(self) -> None:
        from gpt3_jax.bench import decode, table

        args = self._args
        log.info("measuring generation")
        lengths = args.prompt_tokens, args.new_tokens
        times = decode.measure(self._config.model, *lengths, args.rows, args.repeat, args.weights)
        self._result["decode"] = dataclasses.asdict(times) | {"bound_share": times.bound_share}
        self._texts.append(f"{' + '.join(self._names)}, one device\n{table.decode(times)}")

    def _loader(self) -> None:
        from gpt3_jax.bench import loader, table

        args = self._args
        sources = [SourceConfig(path=path) for path in args.sources] or list(self._config.data.train)
        n_ctx = args.n_ctx or (self._config.model.n_ctx if args.config else 2048)
        log.info("measuring the data loader")
        times = loader.measure(sources, args.gigabytes, n_ctx, args.batch, args.batches, args.repeat, args.folder)
        self._result["loader"] = dataclasses.asdict(times)
        self._texts.append(table.loader(times))

    def _checkpoint(self) -> None:
        from gpt3_jax.bench import checkpoint, table

        log.info("measuring checkpoints")
        times = checkpoint.measure(self._config, self._args.folder, self._args.repeat)
        self._result["checkpoint"] = dataclasses.asdict(times)
        self._texts.append(f"{' + '.join(self._names)}\n{table.checkpoint(times)}")

    def _evaluate(self) -> None:
        from gpt3_jax.bench import evaluate, table
        from gpt3_jax.parallel.mesh import make_mesh

        args = self._args
        log.info("measuring evaluation")
        mesh = make_mesh(self._config.parallel)
        times = evaluate.measure(self._config, mesh, args.items, args.context_tokens, args.repeat)
        self._result["evaluate"] = dataclasses.asdict(times)
        self._texts.append(f"{' + '.join(self._names)}\n{table.evaluate(times)}")

    def _startup(self) -> None:
        import jax

        from gpt3_jax.bench import startup, table

        if jax.process_count() > 1 or jax.default_backend() != "cpu":
            # An accelerator that this process holds is not free for the runs that it would start.
            raise UserError("bench startup measures on a CPU, in one process; JAX_PLATFORMS=cpu measures there")
        log.info("starting the run, without and with compiled programs")
        files = [part for name in self._names for part in ("--config", name)]
        times = startup.measure(self._config, [*files, *self._overrides], self._args.folder, self._args.repeat)
        self._result["startup"] = dataclasses.asdict(times)
        self._texts.append(f"{' + '.join(self._names)}\n{table.startup(times)}")

    def _ceilings(self) -> None:
        import jax

        from gpt3_jax.bench import ceilings, table

        log.info("measuring a matmul and a copy")
        found = ceilings.measure(jax.local_devices()[0])
        self._result["ceilings"] = dataclasses.asdict(found)
        self._texts.append(table.ceilings(found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax bench",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs="?", default="step", help=f"{', '.join((*PARTS, *ALONE))} or all (default: step)")
    parser.add_argument(
        "sources",
        type=local_path,
        nargs="*",
        metavar="SOURCE",
        help="loader: token shards to read (default: data.train of the configuration, or random tokens, written into "
        "a temporary folder that is removed)",
    )
    parser.add_argument(
        "--config", type=local_path, action="append", metavar="FILE", help="configuration, as in train; later ones win"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--folder",
        type=local_path,
        default=tempfile.gettempdir(),
        metavar="DIR",
        help="folder for temporary files; checkpoints are measured on its disk (default: %(default)s)",
    )
    parser.add_argument(
        "--repeat",
        type=int,
        default=5,
        metavar="N",
        help="repetitions of decode, loader, checkpoint, evaluate and startup (default: %(default)s)",
    )
    step = parser.add_argument_group("step")
    step.add_argument(
        "--steps",
        type=int,
        metavar="N",
        help="number of steps to measure, both dispatched as in train and one at a time (default: 20, or as many as "
        "take about 20 s, at least 3)",
    )
    step.add_argument("--warmup", type=int, default=2, metavar="N", help="warm-up steps (default: %(default)s)")
    step.add_argument(
        "--profile", action="store_true", help="also trace three steps, and print where their time goes, by operation"
    )
    decode = parser.add_argument_group("decode")
    decode.add_argument(
        "--weights",
        choices=("compute", "int8"),
        default="compute",
        help="weights in model.dtype, or the matrices in int8 (default: %(default)s)",
    )
    decode.add_argument(
        "--prompt-tokens", type=int, metavar="N", help="tokens per prompt (default: half of model.n_ctx)"
    )
    decode.add_argument(
        "--new-tokens", type=int, metavar="N", help="tokens per completion (default: 128, or what the context leaves)"
    )
    decode.add_argument(
        "--rows", type=int, default=1, metavar="N", help="prompts completed at once, up to 16 (default: %(default)s)"
    )
    loader = parser.add_argument_group("loader")
    loader.add_argument(
        "--gigabytes", type=float, default=1.0, metavar="GB", help="size of the random shards (default: %(default)s)"
    )
    loader.add_argument(
        "--n-ctx",
        type=int,
        metavar="N",
        help="tokens per sequence (default: model.n_ctx of a --config, or 2048)",
    )
    loader.add_argument(
        "--batch", type=int, default=256, metavar="N", help="sequences per batch (default: %(default)s)"
    )
    loader.add_argument(
        "--batches", type=int, default=20, metavar="N", help="batches per repetition (default: %(default)s)"
    )
    evaluate = parser.add_argument_group("evaluate")
    evaluate.add_argument(
        "--items", type=int, metavar="N", help="items of each kind (default: as many as fill about two batches)"
    )
    evaluate.add_argument(
        "--context-tokens", type=int, metavar="N", help="most tokens of a context (default: half of model.n_ctx)"
    )
    return parser
