"""The command `gpt3-jax`: dispatches to the command's module, and turns errors into one line and an exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import select
import sys

from gpt3_jax import __version__
from gpt3_jax.cluster import signals
from gpt3_jax.cluster.log import show
from gpt3_jax.environment import open_streams
from gpt3_jax.errors import RunError, UserError, explain

COMMANDS = {
    "train": "train a model; without arguments, the quickstart: a small GPT-3 on the text of the standard library",
    "plan": "memory, traffic and predicted time of a configuration on a TPU or GPU topology, without the hardware",
    "data": "convert text to token shards and inspect them; languages of a corpus (data tokenize, inspect, languages)",
    "report": "the papers' tables, and ZeRO's memory read from compiled programs",
    "bench": "measure the step, generation, evaluation, the data loader and checkpoints on the attached devices",
    "evaluate": "zero-, one- and few-shot results by the paper's protocol, beside the paper's own",
    "lm-eval": "lm-evaluation-harness on a checkpoint: its tasks by its own protocol",
    "bias": "the paper's probes of bias: occupations, pronouns, and words of gender, race and religion",
    "news": "articles that a model writes, and a blind quiz about who wrote them",
    "contamination": "which items of tasks are in the training text, and the scores without them (Table C.1)",
    "memorisation": "how much of samples, or of a model's continuations, is in the training text, and where",
    "generate": "complete prompts with a checkpoint",
    "convert": "convert checkpoints from and to Hugging Face's GPT-2 and GPT-Neo formats",
}
"""Each command is a module of gpt3_jax.cli with ``main(argv: list[str]) -> int``, imported when it is called."""

HELP = f"""\
usage: gpt3-jax COMMAND [OPTIONS]

GPT-3 and ZeRO, made executable in JAX.

commands:
{chr(10).join(f"  {name:<13} {line}" for name, line in COMMANDS.items())}

  gpt3-jax COMMAND --help explains each option with its default and unit.

options:
  -h, --help  show this help
  --version   show the versions of gpt3-jax, JAX and Python

examples:
  gpt3-jax train
  gpt3-jax train --config gpt3-xl --config mesh-h100-8 --config my-data.yaml --train.run_dir runs/xl

exit codes: 0 done, 1 something failed while running, 2 what was asked for is wrong
"""

SIGPIPE_EXIT = 141
INTERRUPT_EXIT = 130
TERMINATE_EXIT = 143
"""The exit codes that a shell reports for a program ended by SIGPIPE, by Ctrl-C, and by SIGTERM."""


def run() -> int:
    """The console script: `main` with this process's arguments."""
    open_streams()  # first: a pipe or file that is opened takes the number of a closed stream
    signals.install()
    try:
        signals.unwind()
        code = main(sys.argv[1:])
    except BaseException as error:
        # Ctrl-C inside an import or a callback can become another exception, such as an ImportError. It is ignored.
        if signals.exit_code() is None and not isinstance(error, KeyboardInterrupt):
            raise
        print("gpt3-jax: interrupted", file=sys.stderr)
        code = INTERRUPT_EXIT
    code = signals.exit_code() or code
    if code in (INTERRUPT_EXIT, TERMINATE_EXIT):
        # Skips Python's own shutdown, which frees what a compilation in another thread still uses, and would crash.
        with contextlib.suppress(OSError):  # the reader is gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    return code


def main(argv: list[str]) -> int:
    """Runs one command line, ``["train", "--train.tokens", "1e9"]``, and returns the exit code.

    UserError and RunError become one line on stderr and exit code 2 and 1. So do errors of the system and of other
    libraries that `explain` recognises. Any other exception is a defect of this program and keeps its traceback. Raises
    SystemExit as argparse does: for a command's ``--help``, and with code 2 for options that argparse refuses.
    """
    show()
    try:
        code = _dispatch(argv)
        sys.stdout.flush()  # flushed here, so that a closed pipe is noticed
    except (UserError, RunError) as error:
        print(f"gpt3-jax: error: {error}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _stdout_is_broken():
            return SIGPIPE_EXIT
        line = explain(error)
        if line is None:
            raise
        _drop_stdout_if_it_fails()
        print(f"gpt3-jax: error: {line}", file=sys.stderr)
        return line.exit_code
    except KeyboardInterrupt as error:
        print(f"gpt3-jax: {'terminated' if isinstance(error, signals.Terminated) else 'interrupted'}", file=sys.stderr)
        return INTERRUPT_EXIT
    return code


def _dispatch(argv: list[str]) -> int:
    if not argv:
        print(HELP, end="", file=sys.stderr)
        return 2
    name, *rest = argv
    if name in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if name == "--version":
        from importlib.metadata import version

        print(f"gpt3-jax {__version__}, jax {version('jax')}, Python {sys.version.split()[0]}")
        return 0
    if name not in COMMANDS:
        import difflib

        kind = "option" if name.startswith("-") else "command"
        near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown {kind} {name!r}; {hint}; gpt3-jax --help explains them")
    return int(importlib.import_module(f"gpt3_jax.cli.{name.replace('-', '_')}").main(rest))


def _stdout_is_broken() -> bool:
    """Whether stdout's reader is gone (``| head``). If so, redirects stdout to the null device, so that Python's flush
    at exit does not fail. Other broken pipes, such as a connection to another machine, are a different error."""
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # a replacement without a file descriptor, as in notebooks
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # errors are always reported
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _drop_stdout_if_it_fails() -> None:
    """Redirects stdout to the null device if its buffer cannot be written, so that Python's exit does not fail
    again."""
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
