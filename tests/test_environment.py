"""Streams, settings and plugins as a process finds them: made sound, kept quiet, or refused in one line."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_run import tiny, write_data

import gpt3_jax
from gpt3_jax import environment
from gpt3_jax.cli.main import main
from gpt3_jax.errors import RunError, UserError, explain
from gpt3_jax.train import loop


def python(code: str, shell: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """The code in a process of its own; `shell` may redirect its streams."""
    inherited = {key: value for key, value in os.environ.items() if key not in _HUSHED and key != "JAX_PLATFORMS"}
    command = ["bash", "-c", f'"{sys.executable}" -c "$CODE" {shell}']
    return subprocess.run(
        command, env={**inherited, "CODE": code, **env}, capture_output=True, text=True, timeout=300, check=False
    )


_HUSHED = environment._WITHOUT_TPU | environment._WITHOUT_GPU


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environment")
    config = tiny(write_data(folder), folder / "run", parallel={"data": 8}, train={"batch_tokens": 128, "tokens": 128})
    loop.run(config)
    return folder / "run"


# ---------------------------------------------------------------------------------------------------------------
# Plugins without a device
# ---------------------------------------------------------------------------------------------------------------

_ENTRIES = {
    "generate": "gpt3_jax.generate({run!r}, 'a', max_tokens=2)",
    "generate, JAX imported first": "import jax; gpt3_jax.generate({run!r}, 'a', max_tokens=2)",
    "train.run": "gpt3_jax.train.run(gpt3_jax.load_config([{run!r} + '/config.yaml'], []))",
    "model.forward": "import jax; c = gpt3_jax.load_config([{run!r} + '/config.yaml'], []).model; "
    "gpt3_jax.model.forward(gpt3_jax.model.init(c, jax.random.key(0)), jax.numpy.zeros((1, 4), 'int32'), c)",
}


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: nothing to be quiet")
@pytest.mark.skipif(environment.has_devices(environment.TPU_NODES), reason="this machine has a TPU")
@pytest.mark.parametrize(
    "entry", [entry if entry == "generate" else pytest.param(entry, marks=pytest.mark.slow) for entry in _ENTRIES]
)
def test_libtpu_without_a_tpu_says_nothing(run_dir: Path, entry: str) -> None:
    first, _, code = _ENTRIES[entry].rpartition("import jax; ")
    order = "import jax, gpt3_jax; " if first or "first" in entry else "import gpt3_jax; import jax; "
    result = python(order + code.format(run=str(run_dir)))
    ours = "WARNING:gpt3_jax:no MFU is shown"  # training's own, of a CPU
    others = [line for line in result.stderr.splitlines() if not line.startswith(ours)]
    assert (result.returncode, others) == (0, [])


@pytest.mark.parametrize(
    ("installed", "nodes", "hushed"),
    [
        ({"libtpu"}, (), "TPU_SKIP_MDS_QUERY"),
        ({"libtpu"}, environment.TPU_NODES, ""),
        ({"libtpu"}, environment.GPU_NODES, "TPU_SKIP_MDS_QUERY"),
        ({"jax_plugins"}, (), "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"),
        ({"jax_plugins"}, environment.GPU_NODES, ""),
        (set(), (), ""),
    ],
)
def test_only_absent_devices_are_hushed(
    installed: set[str], nodes: tuple[str, ...], hushed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in _HUSHED:
        monkeypatch.setenv(name, "as it was")
    for name in ("TPU_SKIP_MDS_QUERY", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in installed else None)
    monkeypatch.setattr(environment, "has_devices", lambda asked: asked == nodes)
    environment.hush_absent_devices()
    assert {name for name in _HUSHED if os.environ.get(name, "as it was") != "as it was"} == ({hushed} - {""})


# ---------------------------------------------------------------------------------------------------------------
# Settings of JAX
# ---------------------------------------------------------------------------------------------------------------

_SETTINGS: list[tuple[dict[str, str], str]] = [
    ({"JAX_PLATFORMS": "cuda"}, r"JAX_PLATFORMS (jax_platforms) is 'cuda', which JAX cannot start here: "),
    ({"JAX_PLATFORMS": "CPU"}, "JAX_PLATFORMS (jax_platforms) is 'CPU', which JAX cannot start here: "),
    ({"JAX_ENABLE_X64": "1"}, "JAX_ENABLE_X64 (jax_enable_x64) is on; "),
    ({"JAX_ENABLE_X64": "maybe"}, "JAX_ENABLE_X64 is 'maybe', which JAX does not know; "),
    ({"JAX_NUM_CPU_DEVICES": "abc"}, "JAX_NUM_CPU_DEVICES is 'abc', which JAX does not know; "),
    ({"JAX_NUM_CPU_DEVICES": "0", "XLA_FLAGS": ""}, "JAX cannot start this machine's devices: "),
    ({"JAX_DEFAULT_MATMUL_PRECISION": "high!"}, "JAX_DEFAULT_MATMUL_PRECISION is 'high!', which JAX does not know; "),
    ({"JAX_TRACEBACK_FILTERING": "no"}, "JAX_TRACEBACK_FILTERING is 'no', which JAX does not know; "),
    ({"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "x"}, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is 'x', which"),
]


@pytest.mark.skipif(environment.has_devices(environment.GPU_NODES), reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("env", "line"),
    [
        pytest.param(env, line, id=" ".join(env), marks=[] if n in (0, 3) else pytest.mark.slow)
        for n, (env, line) in enumerate(_SETTINGS)
    ],
)
def test_a_setting_of_jax_that_cannot_be_followed_is_one_line(env: dict[str, str], line: str, run_dir: Path) -> None:
    code = f"import sys; sys.argv = ['', 'generate', {str(run_dir)!r}, '--prompt', 'a']; "
    result = python(code + "from gpt3_jax.cli.main import run; raise SystemExit(run())", **env)
    assert result.returncode == (1 if "NUM_CPU" in str(env) and "0" in env.values() else 2), result.stderr
    assert result.stderr.startswith(f"gpt3-jax: error: {line}"), result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


@pytest.mark.parametrize(
    ("setting", "line"), [("jax_enable_x64", "JAX_ENABLE_X64"), ("jax_disable_jit", "JAX_DISABLE_JIT")]
)
def test_training_refuses_what_would_give_other_results(setting: str, line: str, tmp_path: Path) -> None:
    config = tiny(tmp_path, tmp_path / "run")
    jax.config.update(setting, True)
    try:
        with pytest.raises(UserError, match=line):
            loop.run(config)
    finally:
        jax.config.update(setting, False)
    assert not (tmp_path / "run").exists()


def test_what_jax_logs_while_it_starts_is_kept_or_becomes_the_reason(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def devices(fails: bool) -> list[Any]:
        try:
            raise OSError("no driver")
        except OSError:
            logging.getLogger("jax.plugins").exception("a plugin failed")
        assert not fails
        return []

    monkeypatch.setattr(jax, "devices", lambda: devices(False))
    environment.start_devices()
    assert [record.getMessage() for record in caplog.records] == ["a plugin failed"]
    caplog.clear()
    monkeypatch.setattr(jax, "devices", lambda: devices(True))
    with pytest.raises((UserError, RunError), match=r"cannot start.*: no driver;"):
        environment.start_devices()
    assert not caplog.records


# ---------------------------------------------------------------------------------------------------------------
# Standard streams
# ---------------------------------------------------------------------------------------------------------------

_RUN = "import sys; sys.argv = ['', *{argv!r}]; from gpt3_jax.cli.main import run; raise SystemExit(run())"


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_a_closed_stream_leads_nowhere(closed: str) -> None:
    """And no file that is opened later takes its number, into which libraries would print."""
    code = (
        "from gpt3_jax.environment import open_streams; open_streams(); import os, sys\n"
        "sys.exit(10 * (os.open('/', os.O_RDONLY) < 3) + (None in (sys.stdin, sys.stdout, sys.stderr)))"
    )
    assert python(code, closed).returncode == 0
    result = python(_RUN.format(argv=["--version"]), closed)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_terminal_without_unicode_sees_escapes(run_dir: Path) -> None:
    code = "print('a → b')\nprint(chr(0xdcff))"
    result = python(f"from gpt3_jax.environment import open_streams; open_streams(); {code}", PYTHONIOENCODING="ascii")
    assert (result.stdout, result.stderr) == ("a \\u2192 b\n\\udcff\n", "")
    result = python(f"from gpt3_jax.environment import open_streams; open_streams(); {code}", PYTHONIOENCODING="utf-8")
    assert result.stdout == "a → b\n\\udcff\n"


# ---------------------------------------------------------------------------------------------------------------
# What others raise
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "f"), "Permission denied: f; give this user permission, or cho"),
        (OSError(24, "Too many open files"), "Too many open files; raise the limit on open files (ulimit -n)"),
        (OSError(5, "Input/output error", "f"), "Input/output error: f; the disk or its network fails"),
        (BrokenPipeError("made by Python"), None),
        (ModuleNotFoundError("No module named 'optax'", name="optax"), "a package is missing or broken: No module"),
        (ModuleNotFoundError("No module named 'gpt3_jax.x'", name="gpt3_jax.x"), None),
        (ImportError("libz.so.1: cannot open shared object file"), "a package is missing or broken: libz.so.1: cannot"),
        (RuntimeError("jaxlib is version 0.4, but this version of jax requires version >= 0.10"), "jaxlib is version"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), "a device is out of memory (RESOURCE_EXHAUSTED: 9 GiB)"),
        (ValueError("ours"), None),
        (RuntimeError("ours"), None),
    ],
)
def test_what_the_system_and_libraries_raise_is_explained(error: Exception, line: str | None) -> None:
    found = explain(error)
    assert found is None if line is None else str(found).startswith(line), found


def test_an_unreadable_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").mkdir()
    assert main(["train", "--config", str(tmp_path / "c.yaml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------------------------------------------------------
# Python callers
# ---------------------------------------------------------------------------------------------------------------

_UNTYPED: Any = gpt3_jax  # as a caller sees it who has no type checker
_MISUSE: dict[str, tuple[Any, str]] = {
    "a folder that is None": (lambda run: _UNTYPED.generate(None, "a"), "folder is None, of type NoneType; expected"),
    "a prompt that is a number": (lambda run: _UNTYPED.generate(run, 5), "prompts is 5, of type int; expected a text"),
    "prompts that are numbers": (lambda run: _UNTYPED.generate(run, [5]), "prompt 1 is of type int; expected text"),
    "max_tokens as text": (lambda run: _UNTYPED.generate(run, "a", max_tokens="4"), "max_tokens is '4', of type str"),
    "half a token": (lambda run: _UNTYPED.generate(run, "a", max_tokens=1.5), "max_tokens is 1.5, of type float; ex"),
    "temperature as text": (lambda run: _UNTYPED.generate(run, "a", temperature="hot"), "temperature is 'hot', of"),
    "top_k that is no count": (lambda run: _UNTYPED.generate(run, "a", top_k=1.5), "top_k is 1.5, of type float; ex"),
    "seed as text": (lambda run: _UNTYPED.generate(run, "a", seed="x"), "seed is 'x', of type str; expected a whole"),
    "a run that is not there": (lambda run: _UNTYPED.generate("/nowhere", "a"), "run folder '/nowhere' does not exist"),
    "training on a dict": (lambda run: _UNTYPED.train.run({}), "config is {}, of type dict; expected a gpt3_jax.Conf"),
    "training on a path": (lambda run: _UNTYPED.train.run("x.yaml"), "config is 'x.yaml', of type str; expected a"),
    "training on a section": (
        lambda run: _UNTYPED.train.run(gpt3_jax.preset("gpt3-small").model), "of type ModelConfig; expected a gpt3_jax"
    ),
    "a preset that is none": (lambda run: gpt3_jax.preset("gpt4"), "no configuration is called 'gpt4'"),
    "a folder for a file": (lambda run: gpt3_jax.load_config([run]), "is a folder; expected a YAML file"),
    "a model from nothing": (lambda run: _UNTYPED.interop.from_hf(None), "the model's folder is None, of type NoneTy"),
    "a model from a dict": (lambda run: _UNTYPED.interop.from_hf({}), "the model's folder is {}, of type dict; "),
    "parameters that are none": (
        lambda run: _UNTYPED.interop.to_hf({}, gpt3_jax.preset("gpt3-small").model, "x"), "params is {}, of type dict"
    ),
}  # fmt: skip


@pytest.mark.parametrize("misuse", _MISUSE)
def test_what_python_callers_get_wrong_is_said(misuse: str, run_dir: Path) -> None:
    call, line = _MISUSE[misuse]
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        call(run_dir)
    assert "\n" not in str(caught.value)
