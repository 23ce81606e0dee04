"""The front door: dispatch, exit codes, and one line for each mistake."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import gpt3_jax
from gpt3_jax.cli import main as front
from gpt3_jax.cluster import signals
from gpt3_jax.errors import RunError, UserError


def _install(monkeypatch: pytest.MonkeyPatch, effect: object) -> list[list[str]]:
    """Puts a command in place of `train` that notes its arguments and then does this: returns it, or raises it."""
    calls: list[list[str]] = []

    def main(argv: list[str]) -> object:
        calls.append(argv)
        if isinstance(effect, BaseException):
            raise effect
        return effect

    module = types.ModuleType("gpt3_jax.cli.train")
    module.main = main  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gpt3_jax.cli.train", module)
    return calls


def test_every_command_is_a_file_and_every_file_a_command() -> None:
    files = {path.stem for path in Path(front.__file__).parent.glob("*.py")} - {"__init__", "main"}
    assert files == {name.replace("-", "_") for name in front.COMMANDS}
    for name in front.COMMANDS:
        assert callable(importlib.import_module(f"gpt3_jax.cli.{name.replace('-', '_')}").main)


def test_help_of_no_command_starts_jax_or_torch() -> None:
    """They take seconds to import."""
    program = """
import contextlib, sys
from gpt3_jax.cli import main as front
for name in front.COMMANDS:
    with contextlib.suppress(SystemExit):
        front.main([name, "--help"])
    found = {"jax", "jaxlib", "flax", "torch", "transformers"} & set(sys.modules)
    assert not found, f"{name}: {found}"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: gpt3-jax") >= len(front.COMMANDS)
    assert max(map(len, done.stdout.splitlines())) <= 130, "a line that no terminal shows as one"


def test_dispatch_hands_over_the_rest_and_returns_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _install(monkeypatch, 7)
    assert front.main(["train", "--train.tokens", "1e9", "--help"]) == 7
    assert calls == [["--train.tokens", "1e9", "--help"]]
    monkeypatch.setattr(sys, "argv", ["gpt3-jax", "train", "-x"])
    monkeypatch.setattr(signals, "install", lambda: None)  # pytest has handlers of its own
    assert front.run() == 7
    assert calls[1] == ["-x"]


@pytest.mark.parametrize(
    ("effect", "code", "line"),
    [
        (UserError("parallel.stage is 4"), 2, "gpt3-jax: error: parallel.stage is 4\n"),
        (RunError("disk full"), 1, "gpt3-jax: error: disk full\n"),
        (KeyboardInterrupt(), 130, "gpt3-jax: interrupted\n"),
        (
            MemoryError("Unable to allocate 9 TiB"),
            1,
            "gpt3-jax: error: this machine is out of memory (Unable to allocate 9 TiB); use a smaller batch "
            "or model, or stop other programs on it\n",
        ),
    ],
)
def test_what_goes_wrong_is_one_line_and_a_code(
    effect: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _install(monkeypatch, effect)
    assert front.main(["train"]) == code
    assert capsys.readouterr() == ("", line)


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError, match="ours"):
        front.main(["train"])


def test_a_broken_pipe_that_is_not_stdout_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _install(monkeypatch, BrokenPipeError("a socket"))
    with pytest.raises(BrokenPipeError, match="a socket"):
        front.main(["train"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["trian"], ["unknown command 'trian'", "the nearest is train"]),
        (["--hepl"], ["unknown option '--hepl'", "the nearest is --help"]),
        (["xyzzy"], ["unknown command 'xyzzy'", "there are train, plan, "]),
    ],
)
def test_unknown_commands(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_lists_every_command(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main([option]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for name, line in front.COMMANDS.items():
        assert f"\n  {name:<13} {line}\n" in out
    assert max(map(len, out.splitlines())) <= 120


def test_no_command_shows_the_help_and_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main([]) == 2
    assert capsys.readouterr() == ("", front.HELP)


def _as_module(*argv: str, then: str = "") -> subprocess.CompletedProcess[str]:
    command = f"{sys.executable} -m gpt3_jax {' '.join(argv)} {then}"
    return subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)


def test_python_m_is_the_same_program() -> None:
    result = _as_module("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"gpt3-jax {gpt3_jax.__version__}, jax ")
    result = _as_module("trian")
    assert (result.returncode, result.stdout) == (2, "")
    assert "the nearest is train" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "gpt3_jax", "--version"]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr == "gpt3-jax: error: No space left on device: the output; free some space\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    result = _as_module("--help", then="| true")
    assert result.stderr == ""
    assert result.returncode in (0, front.SIGPIPE_EXIT)  # 0 if all was written before the reader left


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_reader_ends_quietly(unbuffered: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with the reader gone for certain before anything is written: seen when the program writes, or when it
    flushes at its end."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    program = (
        "import os, subprocess, sys\n"
        "reader, writer = os.pipe()\n"
        "os.close(reader)\n"
        "done = subprocess.run([sys.executable, '-m', 'gpt3_jax', '--help'], stdout=writer, stderr=subprocess.PIPE)\n"
        "print(done.returncode, done.stderr.decode(), end='')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == f"{front.SIGPIPE_EXIT} "


@pytest.mark.parametrize("name", front.COMMANDS)
def test_every_command_explains_itself(name: str) -> None:
    result = _as_module(name, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert f"usage: gpt3-jax {name}" in " ".join(result.stdout.split())


@pytest.mark.parametrize(("command", "level"), [("plan", "2"), ("report", "2"), ("train", "unset")])
def test_compilers_warn_nobody_of_a_plan(command: str, level: str) -> None:
    """Their level counts from the moment at which JAX is imported."""
    code = (
        "import os, sys; import gpt3_jax.cli.main as front\n"
        "seen = []\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'jax': seen.append(os.environ.get('TF_CPP_MIN_LOG_LEVEL', 'unset'))\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"front.main([{command!r}, *{_REFUSED[command]!r}])\n"
        "print(seen[0])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == f"{level}\n"


_REFUSED = {
    "plan": ["--config", "gpt3-small", "--topology", "nowhere"],
    "report": ["remat", "--topology", "nowhere"],
    "train": ["--parallel.data", "3"],
}
"""Arguments that reach JAX, and no further."""
