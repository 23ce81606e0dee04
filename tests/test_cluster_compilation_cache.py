"""Compiled programs kept on disk: the same results, in one process and in two, and a folder that cannot be used."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_run import finish, losses, saved, tiny, write_data
from xla_flags import xla_flags

from gpt3_jax.cluster import compilation_cache
from gpt3_jax.config import Config, replace, to_yaml
from gpt3_jax.train.checkpoint.integrity import named_leaves

# Counts what each command finds and what it writes, and says so at its end.
PROGRAM = """
import collections, json, sys
import jax.monitoring
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rpartition("/")[2]]))
from gpt3_jax.cluster import compilation_cache
compilation_cache._MIN_COMPILE_S = 0.0
from gpt3_jax.cli.main import main
for arguments in json.loads(sys.argv[1]):
    counts.clear()
    code = main(arguments)
    print("found", counts["cache_hits"], "written", counts["cache_misses"], flush=True)
    if code:
        raise SystemExit(code)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def start(commands: list[list[str]], cache: Path, **variables: str) -> subprocess.Popen[str]:
    """``gpt3-jax`` with each of these arguments in turn, as from a user's shell, whose cache folder is `cache`."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION_CACHE")}
    env |= {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(),  # XLA's own program, and what aliases in it, is the same
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        **variables,
    }
    command = [sys.executable, "-c", PROGRAM, json.dumps(commands)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(config: Config) -> list[str]:
    file = Path(config.train.run_dir).with_suffix(f".{config.distributed.process_id}.yaml")
    file.write_text(to_yaml(config))
    return ["train", "--config", str(file)]


def counts(out: str) -> list[tuple[int, int]]:
    """Programs found in the cache, and written to it, by each command."""
    return [(int(found), int(written)) for found, written in re.findall(r"found (\d+) written (\d+)", out)]


def run(commands: list[list[str]], cache: Path, **variables: str) -> tuple[list[tuple[int, int]], str, str]:
    code, out, err = finish(start(commands, cache, **variables))
    assert code == 0, out + err
    return counts(out), out, err


def programs(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*-cache"))


def assert_bit_identical(one: Config, *others: Config) -> None:
    mine = named_leaves(saved(one))
    for other in others:
        assert losses(Path(one.train.run_dir)) == losses(Path(other.train.run_dir))
        theirs = named_leaves(saved(other))
        assert mine.keys() == theirs.keys()
        assert [name for name, leaf in mine.items() if leaf.tobytes() != theirs[name].tobytes()] == []


def alternating(data: Path, run_dir: Path, **train: Any) -> Config:
    """Both kinds of attention, two microbatches: the step's state is donated, and its loops alias their buffers."""
    return tiny(
        data,
        run_dir,
        model={"n_layers": 2, "attention_pattern": ["dense", "banded"], "band_width": 4, "dtype": "bfloat16"},
        train=train,
        memory={"microbatch": 2, "remat": "full"},
    )


def test_a_second_start_compiles_nothing_and_changes_no_bit(tmp_path: Path, data: Path) -> None:
    cold, warm, damaged = (alternating(data, tmp_path / name, tokens=256) for name in ("cold", "warm", "damaged"))
    cache = tmp_path / "cache"
    generate = ["generate", cold.train.run_dir, "--prompt", "ab", "--max-tokens", "6"]
    first, said, err = run([train(cold), generate], cache)
    kept = programs(cache)
    assert first[0][0] == 0 and all(written > 0 for _, written in first)
    assert sum(written for _, written in first) == len(kept)
    assert "programs" not in err
    # Each command by itself: it is to find the cache without the other's help.
    second, _, _ = run([train(warm)], cache)
    assert second == [(sum(first[0]), 0)]
    ((found, written),), again, _ = run([generate], cache)
    assert found >= sum(first[1]) and not written
    texts = [re.split(r"found \d+ written \d+\n", out) for out in (said, again)]
    assert texts[0][1] == texts[1][0] != ""

    for path in kept:  # as a process killed while it writes leaves them
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (third,), _, err = run([train(damaged)], cache)
    assert third[0] == 0
    assert "Error reading persistent compilation cache entry for 'jit_step'" in err
    assert_bit_identical(cold, warm, damaged)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[pytest.MonkeyPatch]:
    """JAX's settings as a process starts with them, and the cache folder in `tmp_path`."""
    names = (
        "jax_compilation_cache_dir", "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs"
    )  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def flag(name: str) -> Any:
    return getattr(jax.config, name)  # JAX's type stubs leave these out


def enabled() -> str | None:
    compilation_cache.enable()
    folder: str | None = flag("jax_compilation_cache_dir")
    return folder


def test_programs_are_kept_in_the_users_cache_folder(
    fresh: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    folder = enabled()
    assert folder == str(compilation_cache.default_folder()) and not said
    assert Path(folder).parent == tmp_path / "gpt3-jax" / "programs"
    assert Path(folder).stat().st_mode & 0o077 == 0 and not list(Path(folder).iterdir())
    assert flag("jax_persistent_cache_min_compile_time_secs") < 1.0


def test_what_the_user_has_set_stays(fresh: pytest.MonkeyPatch, tmp_path: Path, said: list[str]) -> None:
    jax.config.update("jax_compilation_cache_dir", "/own")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 7.0)
    assert enabled() == "/own" and said == []
    assert flag("jax_persistent_cache_min_compile_time_secs") == 7.0
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", False)
    assert enabled() is None and said == []
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_line(
    fresh: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    (tmp_path / "file").write_text("")
    fresh.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = enabled()
    assert folder is None
    assert len(said) == 1 and "\n" not in said[0]
    assert f"{compilation_cache.default_folder()} cannot be written (Not a directory)" in said[0]


def test_a_user_without_a_home_folder_is_told(fresh: pytest.MonkeyPatch, tmp_path: Path, said: list[str]) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    fresh.delenv("XDG_CACHE_HOME")
    fresh.setattr(Path, "home", no_home)
    folder = enabled()
    assert folder is None and len(said) == 1 and "no home folder" in said[0]


def two(config: Config, caches: list[Path]) -> list[tuple[tuple[int, int], str]]:
    """The run as two processes of one device, each with a cache folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    manual = {"mode": "manual", "coordinator": f"127.0.0.1:{port}", "processes": 2}
    processes = [
        start([train(replace(config, distributed={**manual, "process_id": rank}))], cache)
        for rank, cache in enumerate(caches)
    ]
    ended = [finish(process) for process in processes]
    assert [code for code, _, _ in ended] == [0, 0], ended
    return [(counts(out)[0], err) for _, out, err in ended]


@pytest.mark.slow
def test_all_of_two_processes_find_programs_or_none_does(tmp_path: Path, data: Path) -> None:
    cold, warm, apart = (
        tiny(data, tmp_path / name, parallel={"data": 2, "stage": 2}, train={"tokens": 256})
        for name in ("cold", "warm", "apart")
    )
    shared = [tmp_path / "cache"] * 2
    for config in (cold, warm):
        (lead, err), (other, silent) = two(config, shared)
        assert len(programs(tmp_path / "cache")) == 1  # what was tried out; on CPU, the keys of process 1 are others
        assert sum(lead) == 1 and other == (0, 1)  # JAX counts as written what process 1 compiled and did not write
        assert (
            "on cpu the other processes do not find a program that process 0 has kept" in err
            and "not kept" not in silent
        )

    (lead, err), (other, silent) = two(apart, [tmp_path / "cache", tmp_path / "another"])
    assert lead == other == (0, 0)
    assert "is not the same folder for all processes" in err and "not kept" not in silent
    assert_bit_identical(cold, warm, apart)


def test_what_was_used_longest_ago_is_removed_first(tmp_path: Path) -> None:
    folders = [tmp_path / "machine-1", tmp_path / "machine-2"]
    for number in range(4):
        path = folders[number % 2] / f"program-{number}-cache"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(100))
        # Number 0 was written first but read last.
        os.utime(path, (10 if number == 0 else number, number))
    compilation_cache.trim(tmp_path, 400)
    assert len(programs(tmp_path)) == 4
    compilation_cache.trim(tmp_path, 299)
    assert [path.name for path in programs(tmp_path)] == ["program-0-cache", "program-3-cache"]


def test_another_processor_or_number_of_cores_has_a_folder_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here = compilation_cache.default_folder()
    assert compilation_cache.default_folder() == here
    information = Path("/proc/cpuinfo").read_text()
    flags = re.search(r"^(flags|Features)\t*: .*$", information, re.MULTILINE)
    assert flags is not None
    monkeypatch.setattr(Path, "read_text", lambda _: information.replace(flags[0], f"{flags[0]} avx1024"))
    other = compilation_cache.default_folder()
    assert other.parent == here.parent and other != here
    monkeypatch.undo()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
    assert compilation_cache.default_folder() not in (here, other)
