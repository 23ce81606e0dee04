"""`gpt3-jax train`."""

from __future__ import annotations

import shlex
import shutil
import sys
import textwrap

from gpt3_jax.cluster import start_up
from gpt3_jax.config import Config, load_config, to_yaml
from gpt3_jax.config.explain import entry, options_help
from gpt3_jax.environment import cpu_only
from gpt3_jax.errors import UserError

_USAGE = """gpt3-jax train [--config FILE ...] [--SECTION.KEY VALUE ...]
                      [--print-config | --verify-recipe [--devices N]]"""

_DESCRIPTION = """Trains a GPT-3. Without a configuration, it trains the quickstart: a small GPT-3 on the source of this
machine's Python standard library (five to nine minutes on two CPU cores; nothing is downloaded). If the run's folder
(train.run_dir) holds a checkpoint, training resumes from it. SIGTERM and Ctrl-C stop training after a step, with a
checkpoint. Before the first step there is nothing to save, and they end it at once."""

_EPILOG = """exit codes: 0 trained to the end; 1 something failed while running; 2 what was asked for is wrong; 143
stopped by SIGTERM and 130 by Ctrl-C, with a checkpoint: the same command resumes from it. (The code is not 0, so that
a cluster restarts the job, and jobs that depend on its success do not start.) Compiled programs are cached in
$XDG_CACHE_HOME/gpt3-jax/programs (default ~/.cache), 2 GiB and what was used in the last two days, and reused by
later starts. JAX_COMPILATION_CACHE_DIR=FOLDER moves the cache, JAX_ENABLE_COMPILATION_CACHE=false turns it off."""

_OPTIONS = {
    "-h, --help": "Show this help and exit.",
    "--config FILE": "YAML file; may be given several times, later files win. A bare name such as gpt3-small or "
    "mesh-h100-8 is looked up among the shipped configurations.",
    "--SECTION.KEY VALUE": "A setting, as listed below; it wins over every file. Given twice, the last one wins.",
    "--print-config": "Print the configuration as YAML and exit.",
    "--verify-recipe": "Print each quantity of the paper's recipe beside what would run on the configuration's mesh, "
    "with deviations marked, and exit.",
    "--devices N": "For --verify-recipe if parallel.data is -1: the number of devices of the run (default: the number "
    "of attached devices).",
}
_QUICKSTART = "quickstart"
_PROMPTS = {"stdlib": "def ", "in-context": "reverse\nword="}
"""Prompts that suit the text of `data.builtin`."""
_FLAGS = ("--print-config", "--verify-recipe")
_SIGTERM_EXIT, _SIGINT_EXIT = 143, 130


def main(argv: list[str]) -> int:
    """Trains, prints the next commands, and returns the exit code.

    Raises:
        UserError: the arguments are wrong.
        RunError: training failed. In a multi-process run, neither is raised: see `NoneLeftWaiting`.
    """
    paths, overrides, flags, devices = _split(argv)
    if "--help" in flags:
        print(_help(), end="")
        return 0
    start_up.begin()
    config = load_config(paths or [_QUICKSTART], overrides)
    start_up.mark("configuration")
    if "--print-config" in flags:
        sys.stdout.write(to_yaml(config))
        return 0
    if "--verify-recipe" in flags:
        print(_recipe(config, devices))
        return 0
    return _train(config, argv)


def _recipe(config: Config, devices: int | None) -> str:
    """The recipe beside what would run on the configuration's mesh, for `devices` devices or those attached."""
    from gpt3_jax.train import recipe
    from gpt3_jax.train.schedule import batch_schedule

    parallel = config.parallel
    if devices is None and parallel.data == -1:
        import jax

        devices = jax.device_count()
    shards = recipe.data_shards(parallel, devices)
    return recipe.render(config, batch_schedule(config, shards), shards)


def _split(argv: list[str]) -> tuple[list[str], list[str], set[str], int | None]:
    """Configuration files, overrides, flags, and the number of devices."""
    devices: int | None = None
    paths: list[str] = []
    overrides: list[str] = []
    flags: set[str] = set()
    rest = iter(argv)
    for argument in rest:
        if argument in ("-h", "--help"):
            flags.add("--help")
        elif argument in _FLAGS:
            flags.add(argument)
        elif argument == "--config":
            path = next(rest, None)
            if path is None:
                raise UserError("--config expects the path of a YAML file, or the name of a shipped configuration")
            paths.append(path)
        elif argument.startswith("--config="):
            paths.append(argument.removeprefix("--config="))
        elif argument.partition("=")[0] == "--devices":
            count = argument.removeprefix("--devices=") if "=" in argument else next(rest, "")
            if not count.isdecimal() or int(count) < 1:
                raise UserError(f"--devices is {count!r}; expected how many devices the run would have")
            devices = int(count)
        else:
            overrides.append(argument)
    if devices is not None and "--verify-recipe" not in flags:
        raise UserError("--devices is for --verify-recipe; training uses the attached devices")
    return paths, overrides, flags, devices


def _help() -> str:
    width = shutil.get_terminal_size().columns - 2

    def wrapped(text: str) -> str:
        return textwrap.fill(" ".join(text.split()), width)

    options = [line for option, text in _OPTIONS.items() for line in entry(option, text, "", width)]
    parts = [f"usage: {_USAGE}\n", wrapped(_DESCRIPTION), "\noptions:", *options, options_help(width), ""]
    return "\n".join([*parts, wrapped(_EPILOG), ""])


def _train(config: Config, argv: list[str]) -> int:
    from gpt3_jax.cluster import compilation_cache
    from gpt3_jax.cluster.agreement import is_lead
    from gpt3_jax.cluster.leaving import NoneLeftWaiting
    from gpt3_jax.cluster.log import log
    from gpt3_jax.cluster.start import shutdown, start
    from gpt3_jax.train import builtin, loop
    from gpt3_jax.train.host_memory import keep_freed_memory, run_in_turn, step_bytes
    from gpt3_jax.train.setup import check

    start_up.mark("imports")
    if cpu_only():
        keep_freed_memory(step_bytes(config))
        run_in_turn()
    start(config.distributed)
    with NoneLeftWaiting():
        checked = check(config)  # before a file is written
        compilation_cache.enable()
        start_up.mark("devices")
        started = builtin.prepare(config) if builtin.wanted(config) else None
        hooks: list[loop.MakeHook] = []
        if config.evals.tasks:
            from gpt3_jax.evals import EvaluateTasks

            hooks.append(EvaluateTasks)
        result = loop.run(started.config if started else config, checked, hooks)
        if is_lead():
            if result.stopped and not result.tokens:
                log.info(
                    f"stopped by {result.stopped} before the first step: nothing to save; start again with\n"
                    f"  {same_command(argv)}"
                )
            elif result.stopped:
                log.info(
                    f"stopped by {result.stopped} at {result.tokens:,} tokens; resume with\n  {same_command(argv)}"
                )
            else:
                # The last batch may end slightly beyond train.tokens.
                reached = config.train.tokens if result.steps else result.tokens
                beyond = f" (train.tokens {config.train.tokens:,} was reached before)" if result.steps == 0 else ""
                print(f"trained on {result.tokens:,} tokens{beyond}; checkpoints in {result.checkpoint}")
                if started:
                    print(builtin.verdict(started, result))
                print(
                    _next_steps(config, argv, reached, prompt=_PROMPTS[config.data.builtin] if started else "The "),
                    flush=True,
                )
        shutdown()
    if result.stopped:
        return _SIGINT_EXIT if result.stopped == "SIGINT" else _SIGTERM_EXIT
    return 0


def same_command(argv: list[str], **changed: str) -> str:
    """The same command line with some options set once: ``tokens="2"`` stands for ``--train.tokens 2``."""
    options = {f"--train.{key}": value for key, value in changed.items()}
    kept: list[str] = []
    rest = iter(argv)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        # A change of configuration is accepted once. If kept, the option would accept any later change.
        if name not in options and name != "--checkpoint.on_change":
            kept.append(argument)
        elif not equals:
            next(rest, None)
    return shlex.join(["gpt3-jax", "train", *kept, *(part for pair in options.items() for part in pair)])


def _next_steps(config: Config, argv: list[str], tokens: int, prompt: str) -> str:
    commands = {
        shlex.join(["gpt3-jax", "generate", config.train.run_dir, "--prompt", prompt]): "generate text",
        same_command(argv, tokens=str(2 * tokens)): "train on, to twice as many tokens",
        "gpt3-jax train --config gpt3-small --verify-recipe": "the paper's sizes and their recipe",
    }
    width = min(60, max(map(len, commands)))
    return "\n".join(["next:", *(f"  {command:{width}}  # {what}" for command, what in commands.items())])
