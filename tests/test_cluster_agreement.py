"""What processes tell one another, and what they do where they differ: two real ones."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import finish, tiny, write_data, write_tokens
from xla_flags import xla_flags

from gpt3_jax.cluster import agreement, same_run, shared_folder
from gpt3_jax.config import Config, replace, to_yaml

START = """
    import os, sys
    from pathlib import Path
    rank, port, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    from gpt3_jax.cluster import agreement, leaving, same_run, shared_folder, signals
    from gpt3_jax.cluster.start import shutdown, start
    from gpt3_jax.config import Config, DistributedConfig, replace
    from gpt3_jax.errors import RunError, UserError
    signals.install()
    start(DistributedConfig(mode="manual", coordinator=f"127.0.0.1:{port}", processes=2, process_id=rank))
    import jax; jax.devices()  # for which the processes wait for one another
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def environment(devices: int = 1) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def two(program: str, folder: Path, devices: tuple[int, int] = (1, 1)) -> list[subprocess.Popen[str]]:
    code, port = textwrap.dedent(START) + textwrap.dedent(program), free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(port), str(folder)],
            env=environment(devices[rank]), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip


def results(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    try:
        return [finish(process, timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_differences_name_who_has_what() -> None:
    one, other = {"a": ("1", "1"), "b": ("x", "X"), "c": ("0", "0")}, {"a": ("1", "1"), "b": ("y", "Y")}
    assert agreement.differences([one, one, one]) == []
    assert agreement.differences([one, other, one]) == [
        "b: X in processes 0, 2, Y in process 1",
        "c: 0 in processes 0, 2, nothing in process 1",
    ]
    many = [{"n": (str(rank == 9), str(rank == 9))} for rank in range(20)]
    assert agreement.differences(many) == [
        "n: False in processes 0, 1, 2, 3, 4, 5, 6, 7 and 11 more, True in process 9"
    ]


def test_what_may_differ_and_what_may_not() -> None:
    """Each setting is compared but for a process's number, how it reaches the first one, and where its data lies."""
    source = {"path": "/one", "weight": 1.0}
    config = replace(Config(), data={"train": (source,)})
    mine = same_run.settings(config)
    assert mine == same_run.settings(
        replace(
            config,
            distributed={"mode": "manual", "coordinator": "a:1", "processes": 2, "process_id": 1},
            data={"train": ({**source, "path": "/two"},)},
        )
    )
    changes: dict[str, dict[str, Any]] = {
        "data": {"train": ({**source, "weight": 2.0},)}, "train": {"tokens": 1024}, "optimizer": {"peak_lr": 1.0}
    }  # fmt: skip
    for section, fields in changes.items():
        changed = same_run.settings(replace(config, **{section: fields}))
        assert [name for name in mine if mine[name] != changed[name]] == [f"{section}.{next(iter(fields))}"]
    assert len(mine) > 50
    assert "code of gpt3_jax/train/step.py" in same_run.code()
    assert same_run.versions()["numpy"] == np.__version__


TELL = """
    assert agreement.gather("grüße" * rank) == ["", "grüße"]
    assert agreement.from_lead(f"von {rank}") == "von 0"
    assert agreement.everywhere(True) and not agreement.everywhere(rank == 0)
    with agreement.together("a thing"):
        pass
    for kind in (UserError, RunError):
        try:
            with agreement.together("reading"):
                if rank == 1:
                    raise kind("no such file")
        except kind as error:
            assert str(error) == ("no such file" if rank else "process 1 failed at reading: no such file")
        else:
            raise AssertionError
    same_run.require_same_program(Config())
    same_run.require_same_data("t", [("data.train[0]", f"/copy/{rank}", "f")])
    try:
        same_run.require_same_data("t", [("data.train[0]", f"/copy/{rank}", f"{rank}" * 64)])
    except UserError as error:
        assert "data.train[0]: /copy/0 (000000000000) in process 0, /copy/1 (111111111111) in process 1" in str(error)
    else:
        raise AssertionError
    shared_folder.require_shared(folder / "new")
    assert list((folder / "new").iterdir()) == [] or rank
    agreement.everywhere(True)
    shutdown()
"""


def test_two_processes_tell_each_other(tmp_path: Path) -> None:
    (code, _, err), (other_code, _, other_err) = results(two(TELL, tmp_path))
    assert (code, other_code) == (0, 0), err + other_err


APART = """
    import time
    if rank == 1:
        print("ready", flush=True)
        time.sleep(600)
    with leaving.NoneLeftWaiting():
        agreement.everywhere(True, "meet", 2.0)
"""


def test_a_wait_has_an_end_and_says_for_what(tmp_path: Path) -> None:
    lead, other = two(APART, tmp_path)
    try:
        code, _, err = finish(lead, timeout=120)
        assert code == 1
        assert "gpt3-jax: error in process 0: waited 2 s for the other processes to meet; one of them has" in err
    finally:
        other.kill()
        other.communicate()


MEET = """
    import time
    if rank == 1:
        print("ready", flush=True)
        time.sleep(600)
    print("ready", flush=True)
    agreement.everywhere(True, "meet")
"""


def test_sigterm_ends_a_wait_for_the_others(tmp_path: Path) -> None:
    both = two(MEET, tmp_path)
    try:
        for process in both:
            assert process.stdout is not None
            assert any(line == "ready\n" for line in iter(process.stdout.readline, ""))
        both[0].send_signal(signal.SIGTERM)
        code, _, err = finish(both[0], timeout=60)
        assert code == 143, err
    finally:
        for process in both:
            process.kill()
            process.communicate()


def test_devices_that_differ_in_number_are_named(tmp_path: Path) -> None:
    program = """
        with leaving.NoneLeftWaiting():
            same_run.require_same_program(Config())
    """
    for rank, (code, _, err) in enumerate(results(two(program, tmp_path, (1, 2)))):
        assert code == 2, err
        assert f"error in process {rank}: the processes do not have equally many devices: process 0 has 1, " in err


COMMAND = "from gpt3_jax.cli.main import run; raise SystemExit(run())"


def commands(
    configs: list[Config], folder: Path, command: str = "train", before: str = ""
) -> list[subprocess.Popen[str]]:
    """The command line, from a shell whose folder is a process's own."""
    port = free_port()
    processes = []
    for rank, config in enumerate(configs):
        manual = {"mode": "manual", "coordinator": f"127.0.0.1:{port}", "processes": 2, "process_id": rank}
        file = folder / f"{rank}.yaml"
        file.write_text(to_yaml(replace(config, distributed=manual)))
        (folder / f"cwd-{rank}").mkdir(exist_ok=True)
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", f"{before}\n{COMMAND}", command, "--config", str(file)],
                env=environment(), cwd=folder / f"cwd-{rank}", text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
    return processes


@pytest.mark.parametrize("command", ["train", "bench"])
def test_commands_that_differ_end_before_they_begin(tmp_path: Path, command: str) -> None:
    one = tiny(write_data(tmp_path), tmp_path / "run", parallel={"data": 2}, train={"tokens": 256})
    other = replace(one, train={"tokens": 512}, optimizer={"peak_lr": 0.5})
    for rank, (code, _, err) in enumerate(results(commands([one, other], tmp_path, command))):
        assert code == 2, err
        line = err.splitlines()[-1]
        assert line.startswith(f"gpt3-jax: error in process {rank}: the processes differ in what they run: ")
        assert "optimizer.peak_lr: 0.01 in process 0, 0.5 in process 1; " in line
        assert "train.tokens: 256 in process 0, 512 in process 1; start all" in line
    assert not (tmp_path / "run").exists()


def test_data_that_differs_is_named(tmp_path: Path) -> None:
    one = tiny(write_data(tmp_path / "one"), tmp_path / "run", parallel={"data": 2}, train={"tokens": 256})
    other = replace(one, data={"train": ({"path": str(write_tokens(tmp_path / "more" / "train", 4000, seed=7))},)})
    for rank, (code, _, err) in enumerate(results(commands([one, other], tmp_path))):
        assert code == 2, err
        line = err.splitlines()[-1]
        assert line.startswith(f"gpt3-jax: error in process {rank}: the processes differ in the data that they read: ")
        assert re.search(r"data\.train\[0\]: \S+/one/train \(\w{12}\) in process 0, \S+/more/train \(\w{12}\) in", line)


def test_data_that_one_process_does_not_have_ends_both(tmp_path: Path) -> None:
    one = tiny(write_data(tmp_path), tmp_path / "run", parallel={"data": 2}, train={"tokens": 256})
    other = replace(one, data={"train": ({"path": str(tmp_path / "nowhere")},)})
    (code, _, err), (other_code, _, other_err) = results(commands([one, other], tmp_path))
    assert (code, other_code) == (2, 2)
    assert "error in process 1: " in other_err and "nowhere does not exist" in other_err
    assert "error in process 0: process 1 failed at opening the data: " in err and "nowhere does not exist" in err


SHORT_WAIT = "from gpt3_jax.cluster import shared_folder; shared_folder.SEEN_WITHIN_S = 1.0"


def test_a_run_folder_that_is_not_shared_ends_both(tmp_path: Path) -> None:
    """The same words, two folders: each process has its own current folder."""
    config = tiny(write_data(tmp_path), Path("runs/x"), parallel={"data": 2}, train={"tokens": 256})
    for rank, (code, _, err) in enumerate(results(commands([config, config], tmp_path, before=SHORT_WAIT))):
        assert code == 2, err
        assert (
            f"error in process {rank}: train.run_dir runs/x is not the same folder for all processes: process 1 on"
            in err
        )
    assert list((tmp_path / "cwd-0" / "runs" / "x").iterdir()) == []
    assert shared_folder.SEEN_WITHIN_S > 60  # for how long NFS may keep what it knows of a folder


def test_devices_that_cannot_start_are_one_line_in_a_process_of_several_too() -> None:
    """JAX does not know the process's index then: asking for it would start the devices."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"mode": "manual", "coordinator": f"127.0.0.1:{port}", "processes": "1", "process_id": "0"}
    options = [f"--distributed.{key}={value}" for key, value in given.items()]
    done = subprocess.run(
        [sys.executable, "-m", "gpt3_jax", "train", *options],
        env={**os.environ, "JAX_PLATFORMS": "rocm"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gpt3-jax: error in a process: JAX_PLATFORMS (jax_platforms) is 'rocm'")
    assert done.stderr.count("\n") == 1
