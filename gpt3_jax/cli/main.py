"""The command `gpt3-jax`: finds the command's module, and turns what goes wrong into one line and an exit code."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import platform
import select
import sys

from gpt3_jax import __version__
from gpt3_jax.errors import RunError, UserError

COMMANDS = {
    "train": "train a model; without arguments, the quickstart: a small GPT-3 on the text of the standard library",
    "plan": "what a configuration needs and costs on a TPU or GPU topology that need not be there",
    "data": "text to token shards, and a look at them (data tokenize, data inspect)",
    "report": "the papers' tables, and ZeRO's memory read from compiled programs",
    "bench": "measure the step, generation, the data loader and checkpoints on the attached devices",
    "generate": "complete prompts with a checkpoint",
    "convert": "convert checkpoints from and to Hugging Face's GPT-2 and GPT-Neo formats",
}
"""One module of gpt3_jax.cli each, imported when it is called, with ``main(argv: list[str]) -> int``."""

HELP = f"""\
usage: gpt3-jax COMMAND [OPTIONS]

GPT-3 and ZeRO, made executable in JAX.

commands:
{chr(10).join(f"  {name:<10} {line}" for name, line in COMMANDS.items())}

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
"""What a shell reports for a program ended by SIGPIPE, and by Ctrl-C."""


def run() -> int:
    """The console script: `main` with this process's arguments."""
    _log_plainly()
    _hush_libtpu()
    code = main(sys.argv[1:])
    if code == INTERRUPT_EXIT:
        # Not through Python's own end, which takes away what a compilation in another thread still uses: a crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _log_plainly() -> None:
    """What this package logs is a line for a person, without the level and name that other handlers add."""
    logger, handler = logging.getLogger("gpt3_jax"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    logger.propagate = False


def _hush_libtpu() -> None:
    """Where libtpu is installed to plan with and there is no TPU: it would complain of that at every start of JAX."""
    if importlib.util.find_spec("libtpu") is None or not set(sys.argv[1:2]) & set(COMMANDS):
        return
    if sys.argv[1] in ("plan", "report"):
        from gpt3_jax.plan.on_cpu import hush_compilers

        hush_compilers()  # what follows imports JAX
    from gpt3_jax.cluster.start import compile_without_devices
    from gpt3_jax.train.host_memory import cpu_only

    if cpu_only():
        compile_without_devices()


def main(argv: list[str]) -> int:
    """Runs one command line, ``["train", "--train.tokens", "1e9"]``; returns the exit code.

    UserError and RunError become one line on stderr, and exit code 2 and 1. Any other exception is a defect of this
    program and keeps its traceback. Raises SystemExit where argparse does: for a command's ``--help``, and with
    code 2 for options that it refuses.
    """
    try:
        code = _dispatch(argv)
        sys.stdout.flush()  # here, where a reader that has left is noticed
    except (UserError, RunError) as error:
        print(f"gpt3-jax: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        if not _stdout_is_broken():
            raise
        return SIGPIPE_EXIT
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _drop_stdout()  # what is left in it would be complained of once more
        print(f"gpt3-jax: error: {error.strerror}: {error.filename or 'the output'}; free some space", file=sys.stderr)
        return RunError.exit_code
    except MemoryError as error:
        why = f" ({error})" if str(error) else ""
        print(
            f"gpt3-jax: error: this machine has no more memory to give{why}; take a smaller batch or model, or stop "
            "what else runs on it",
            file=sys.stderr,
        )
        return RunError.exit_code
    except KeyboardInterrupt:
        print("gpt3-jax: interrupted", file=sys.stderr)
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
        print(f"gpt3-jax {__version__}, jax {importlib.metadata.version('jax')}, Python {platform.python_version()}")
        return 0
    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        near = difflib.get_close_matches(name, [*COMMANDS, "--help", "--version"], n=1)
        hint = f"the nearest is {near[0]}" if near else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown {kind} {name!r}; {hint}; gpt3-jax --help explains them")
    return int(importlib.import_module(f"gpt3_jax.cli.{name}").main(rest))


def _stdout_is_broken() -> bool:
    """Whether stdout's reader has left (``| head``). If so, stdout is sent nowhere, so that Python's own flush at the
    end does not complain. A broken pipe elsewhere, such as to another machine, is not this one."""
    try:
        stdout = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # a stand-in without a file, as in notebooks
        return False
    poll = select.poll()
    poll.register(stdout, 0)  # errors are reported unasked
    if not any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return True


def _drop_stdout() -> None:
    """Sends stdout nowhere."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
