"""Ctrl-C and SIGTERM before the first step and in every command: they end it, whatever it is in the middle of."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tiny_run import finish, tiny, write_data

from gpt3_jax.config import to_yaml

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
# A command as from the shell, which says when its handlers stand: what a signal does to Python before is Python's.
COMMAND = """
from gpt3_jax.cluster import signals
signals.install()
print("ready", flush=True)
from gpt3_jax.cli.main import run
raise SystemExit(run())
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    """The program, once it has said "ready"."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n", finish(process)
    return process


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What it said, having ended with `code`, by itself, without a traceback."""
    found, _, err = finish(process, timeout=60)
    assert found == code, (found, err)
    assert "Exception ignored" not in err and "Traceback" not in err, err
    return err


@pytest.mark.parametrize(
    ("number", "seconds"),
    [(signal.SIGINT, 0), (signal.SIGINT, 0.3), (signal.SIGINT, 1), (signal.SIGINT, 3), (signal.SIGTERM, 0.6)],
)
def test_a_command_ends_at_any_moment_of_its_start(tmp_path: Path, number: signal.Signals, seconds: float) -> None:
    train = {"tokens": 10**9, "batch_tokens": 128, "eval_tokens": 10**9}
    config = tiny(write_data(tmp_path), tmp_path / "run", parallel={"data": 8}, train=train)
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    process = start(COMMAND, "train", "--config", str(tmp_path / "run.yaml"))
    time.sleep(seconds)
    process.send_signal(number)
    said = ended(process, CODES[number])
    assert "interrupted" in said or "terminated" in said or "stopped by" in said


@pytest.mark.parametrize("command", [["bench"], ["generate", "nowhere"], ["report", "zero"], ["data", "inspect", "x"]])
def test_every_command_has_the_handlers(command: list[str]) -> None:
    process = start(COMMAND, *command)
    process.send_signal(signal.SIGINT)
    ended(process, CODES[signal.SIGINT])


LOST = """
    import os, signal, time
    from gpt3_jax.cluster import signals
    signals.install()
    signals.unwind()
    signals.GRACE_S = 0.5
    class Library:
        def __del__(self):  # Python drops what is raised here
            print("ready", flush=True)
            time.sleep(60)
    Library()
    time.sleep(60)
"""


@pytest.mark.parametrize("number", list(CODES))
def test_a_signal_that_a_library_drops_ends_the_command(number: signal.Signals) -> None:
    process = start(LOST)
    process.send_signal(number)
    assert ended(process, CODES[number])


# The main thread is in C for minutes, as in a compilation or a collective, and Python's handlers cannot run.
BUSY = """
    import hashlib, sys
    from gpt3_jax.cluster import signals
    signals.install()
    signals.unwind()
    signals.GRACE_S = float(sys.argv[1])
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


@pytest.mark.parametrize("number", list(CODES))
def test_a_command_that_is_busy_ends_after_a_while(number: signal.Signals) -> None:
    process = start(BUSY, "0.5")
    time.sleep(0.5)  # until it is busy
    process.send_signal(number)
    assert ended(process, CODES[number])


def test_a_second_ctrl_c_ends_at_once() -> None:
    process = start(BUSY, "1000")
    time.sleep(0.5)  # until it is busy
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert ended(process, CODES[signal.SIGINT])


CLEAN_UP = """
    import pathlib, sys, tempfile, time
    from gpt3_jax.cluster import signals
    signals.install()
    signals.unwind()
    with tempfile.TemporaryDirectory(dir=sys.argv[1]):
        print("ready", flush=True)
        time.sleep(60)
"""


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    process = start(CLEAN_UP, str(tmp_path))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert not list(tmp_path.iterdir())


IGNORED = """
    import signal, time
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from gpt3_jax.cluster import signals
    signals.install()
    signals.unwind()
    print("ready", flush=True)
    time.sleep(0.5)
    print("went on")
"""


def test_a_ctrl_c_that_the_shell_has_silenced_stays_so() -> None:
    process = start(IGNORED)
    process.send_signal(signal.SIGINT)
    code, out, _ = finish(process)
    assert (code, out) == (0, "went on\n")


def test_sigterm_ends_the_wait_for_the_other_processes() -> None:
    """Something listens at the coordinator's port, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        process = start(
            COMMAND, "train", "--distributed.mode", "manual", "--distributed.processes", "2",
            "--distributed.process_id", "1", "--distributed.coordinator", f"127.0.0.1:{silent.getsockname()[1]}",
        )  # fmt: skip
        silent.accept()  # it is there to be reached: it waits now
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        ended(process, CODES[signal.SIGTERM])
