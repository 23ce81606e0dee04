"""`gpt3-jax train`."""

from __future__ import annotations

import re
import shlex
import sys

from gpt3_jax.config import Config, build_parser, load_config, to_yaml
from gpt3_jax.errors import UserError

_USAGE = """gpt3-jax train [--config FILE ...] [--SECTION.KEY VALUE ...]
                      [--print-config | --verify-recipe]"""

_DESCRIPTION = """Trains a GPT-3. Without a configuration: the quickstart, a small GPT-3 on the text of the Python
standard library that is on this machine (ten minutes on two CPU cores, nothing is downloaded). A run whose folder
(train.run_dir) holds a checkpoint goes on from it. SIGTERM and Ctrl-C stop it after a step, with a checkpoint; before
the first step there is nothing to save, and they end it at once."""

_EPILOG = """exit codes: 0 trained to the end; 1 something failed while running; 2 what was asked for is wrong;
143 stopped by SIGTERM and 130 by Ctrl-C, with a checkpoint: the same command goes on from there. (Not 0, so that a
cluster that restarts what has not succeeded does so, and jobs that wait for this one's success do not start.)
Compiled programs are kept in $XDG_CACHE_HOME/gpt3-jax/programs (~/.cache), 2 GiB at most, and found again by the next
start; JAX_COMPILATION_CACHE_DIR=FOLDER moves them, JAX_ENABLE_COMPILATION_CACHE=false turns that off."""

_QUICKSTART = "quickstart"
_FLAGS = ("--print-config", "--verify-recipe")
_SIGTERM_EXIT, _SIGINT_EXIT = 143, 130


def main(argv: list[str]) -> int:
    """Trains, prints the commands that come next, and returns the exit code.

    Raises:
        UserError: what was asked for is wrong.
        RunError: training failed. With several processes, neither is raised: see `NoneLeftWaiting`.
    """
    paths, overrides, flags = _split(argv)
    if "--help" in flags:
        print(_help(), end="")
        return 0
    config = load_config(paths or [_QUICKSTART], overrides)
    if "--print-config" in flags:
        sys.stdout.write(to_yaml(config))
        return 0
    if "--verify-recipe" in flags:
        from gpt3_jax.train import recipe

        print(recipe.render(config))
        return 0
    return _train(config, argv)


def _split(argv: list[str]) -> tuple[list[str], list[str], set[str]]:
    """Configuration files, overrides, and flags."""
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
        else:
            overrides.append(argument)
    return paths, overrides, flags


def _help() -> str:
    parser = build_parser("gpt3-jax train", " ".join(_DESCRIPTION.split()))
    parser.usage = _USAGE
    parser.epilog = " ".join(_EPILOG.split())
    parser.add_argument("--print-config", action="store_true", help="Print the configuration as YAML and leave.")
    parser.add_argument(
        "--verify-recipe",
        action="store_true",
        help="Print each quantity of the paper's recipe beside the configuration's, deviations marked, and leave.",
    )
    text = parser.format_help()
    # jsonargparse offers a file for each section and a help for each list; `load_config` takes neither.
    text = re.sub(r"^ +--\w+ CONFIG +Path to a configuration file\.\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"^ +--[\w.]+\.help +Show the help for \w+ and exit\.\n", "", text, flags=re.MULTILINE)
    # Choices stand in front already, the Python types of the others are noise; a default on its own line is found.
    text = re.sub(r"\s*\(default:\s+(?:False|null)\)", "", text)
    inside = r"(?:(?!\n +--).)*?"
    pattern = rf"\s*\((?:type:{inside},\s+)?default:\s+({inside})\)(?=\n)"
    return re.sub(pattern, rf"\n{' ' * 24}default: \1", text, flags=re.DOTALL)


def _train(config: Config, argv: list[str]) -> int:
    from gpt3_jax.cluster import compilation_cache
    from gpt3_jax.cluster.agreement import is_lead
    from gpt3_jax.cluster.leaving import NoneLeftWaiting
    from gpt3_jax.cluster.same_run import require_same_program
    from gpt3_jax.cluster.start import shutdown, start
    from gpt3_jax.train import loop, quickstart
    from gpt3_jax.train.host_memory import cpu_only, keep_freed_memory, step_bytes

    if cpu_only():
        keep_freed_memory(step_bytes(config.model, config.train))
    start(config.distributed)
    with NoneLeftWaiting():
        require_same_program(config)
        say = loop.say_to_stderr
        compilation_cache.enable(say)
        started = quickstart.prepare(config, say) if quickstart.wanted(config) else None
        result = loop.run(started.config if started else config, say)
        if is_lead():
            if result.stopped and not result.tokens:
                say(
                    f"stopped by {result.stopped} before the first step: nothing to save; start again with\n"
                    f"  {_command(argv)}"
                )
            elif result.stopped:
                say(f"stopped by {result.stopped} at {result.tokens:,} tokens; go on with\n  {_command(argv)}")
            else:
                # The last batch ends a little behind what was asked for.
                reached = config.train.tokens if result.steps else result.tokens
                beyond = f" (train.tokens {config.train.tokens:,} was reached before)" if result.steps == 0 else ""
                print(f"trained on {result.tokens:,} tokens{beyond}; checkpoints in {result.checkpoint}")
                if started:
                    print(quickstart.verdict(started, result))
                print(_next_steps(config, argv, reached, python=bool(started)), flush=True)
        shutdown()
    if result.stopped:
        return _SIGINT_EXIT if result.stopped == "SIGINT" else _SIGTERM_EXIT
    return 0


def _command(argv: list[str], **changed: str) -> str:
    """The same command line with some options set, each once: ``tokens="2"`` stands for ``--train.tokens 2``."""
    options = {f"--train.{key}": value for key, value in changed.items()}
    kept: list[str] = []
    rest = iter(argv)
    for argument in rest:
        name, equals, _ = argument.partition("=")
        # A change of configuration was meant once; kept, it would accept any other from now on.
        if name not in options and name != "--checkpoint.on_change":
            kept.append(argument)
        elif not equals:
            next(rest, None)
    return shlex.join(["gpt3-jax", "train", *kept, *(part for pair in options.items() for part in pair)])


def _next_steps(config: Config, argv: list[str], tokens: int, python: bool) -> str:
    prompt = "def " if python else "The "
    commands = {
        shlex.join(["gpt3-jax", "generate", config.train.run_dir, "--prompt", prompt]): "let it write",
        _command(argv, tokens=str(2 * tokens)): "go on, to twice as many tokens",
        "gpt3-jax train --config gpt3-small --verify-recipe": "the paper's sizes and their recipe",
    }
    width = min(60, max(map(len, commands)))
    return "\n".join(["next:", *(f"  {command:{width}}  # {what}" for command, what in commands.items())])
