"""Two processes of four devices each against one of eight: what they compute, what they read, how they end together."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import finish, losses, metrics, saved, start, tiny, write_data

from gpt3_jax.cluster.start import HEARTBEAT_TIMEOUT_S
from gpt3_jax.config import Config, replace
from gpt3_jax.train import loop
from gpt3_jax.train.state import TrainState

# Writes down every row of training data that the process reads.
COUNT = """
from gpt3_jax.data import stream
read = stream.Stream.sequences
def counted(self, indices):
    with open({log!r}, "a") as file:
        file.writelines(f"{{index}}\\n" for index in indices)
    return read(self, indices)
stream.Stream.sequences = counted
"""
# Twenty batches a second at most: the steps until a signal is heard of are steps that one process has to repeat.
SLOWLY = """
import time
from gpt3_jax.data import stream
read = stream.Stream.sequences
def slowly(self, indices):
    time.sleep(0.05)
    return read(self, indices)
stream.Stream.sequences = slowly
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def eight(data: Path, run_dir: Path, /, **train: Any) -> Config:
    train = {"batch_tokens": 128, "tokens": 512, "eval_tokens": 512, **train}
    return tiny(data, run_dir, parallel={"data": 8, "stage": 2}, train=train)


def two(configs: list[Config], folder: Path, before: tuple[str, str] = (SLOWLY, SLOWLY)) -> list[subprocess.Popen[str]]:
    """The run as two processes of four devices, with JAX's distributed service and gloo."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    manual = {"mode": "manual", "coordinator": f"127.0.0.1:{port}", "processes": 2}
    return [
        start(
            replace(config, distributed={**manual, "process_id": rank}),
            folder / f"process-{rank}.yaml",
            devices=4,
            before=before[rank],
        )
        for rank, config in enumerate(configs)
    ]


def test_two_processes_train_as_one(tmp_path: Path, data: Path) -> None:
    """One process, then two on a copy of its checkpoint, then one on theirs: losses and parameters are those of one
    process throughout, to rounding; each of the two reads half of the rows, and each row is read once."""
    alone, shared = eight(data, tmp_path / "alone"), eight(data, tmp_path / "shared")
    loop.run(alone)
    shutil.copytree(tmp_path / "alone", tmp_path / "shared")

    logs = [tmp_path / "rows-0", tmp_path / "rows-1"]
    count = COUNT.format(log=str(logs[0])), COUNT.format(log=str(logs[1]))
    for code, out, err in map(finish, two([replace(shared, train={"tokens": 1024})] * 2, tmp_path, count)):
        assert code == 0, out + err
    rows = [[int(line) for line in log.read_text().split()] for log in logs]
    batches = range(32, 64, 8)
    assert rows[0] == [first + row for first in batches for row in range(4)]
    assert rows[1] == [first + row for first in batches for row in range(4, 8)]
    for config in (alone, shared):
        loop.run(replace(config, train={"tokens": 1280}))
    compare(alone, shared)


def compare(one: Config, other: Config) -> None:
    a, b = metrics(Path(one.train.run_dir)), metrics(Path(other.train.run_dir))
    assert [(line["kind"], line["tokens"]) for line in a] == [(line["kind"], line["tokens"]) for line in b]
    np.testing.assert_allclose([line["loss"] for line in b], [line["loss"] for line in a], rtol=2e-5)
    assert_alike(saved(one), saved(other))


def assert_alike(one: TrainState, other: TrainState) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=2e-3, atol=2e-4), one.params, other.params)


def wait_for_lines(run_dir: Path, processes: list[subprocess.Popen[str]], beyond: int = 0) -> None:
    """Until two batches behind `beyond` tokens are written down."""
    deadline = time.monotonic() + 300
    while not (run_dir / "metrics.jsonl").exists() or sum(at > beyond for at in losses(run_dir)) < 3:
        assert time.monotonic() < deadline and all(p.poll() is None for p in processes), [finish(p) for p in processes]
        time.sleep(0.05)


def test_a_signal_to_one_stops_both_and_they_go_on_from_there(tmp_path: Path, data: Path) -> None:
    """Stopped twice and started again between, with a folder for compiled programs, which none or all of them find in;
    losses and the last checkpoint's parameters are those of one process."""
    config = eight(data, tmp_path / "run", tokens=10**8, eval_tokens=10**8)
    config = replace(config, checkpoint={"every_tokens": 10**8, "keep_last": 1})
    last = 0
    for number, failing in ((signal.SIGTERM, 1), (signal.SIGINT, 0)):
        both = two([config, config], tmp_path)
        wait_for_lines(tmp_path / "run", both, last)
        both[failing].send_signal(number)
        results = [finish(process) for process in both]
        codes = [143, 143] if number == signal.SIGTERM else [130, 143]
        assert [code for code, _, _ in results] == codes, results
        assert f"stopped by {number.name}" in results[0][2]
        assert f"--config {tmp_path / 'process-0.yaml'}" in results[0][2]
        assert (f"resuming from {tmp_path / 'run' / 'checkpoints'} at {last:,} tokens" in results[0][2]) == (last > 0)
        last = list(losses(tmp_path / "run"))[-1]
        assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"tokens-{last}"]
        assert int(saved(config).sequences) * 16 == last
    alone = replace(config, train={"run_dir": str(tmp_path / "alone"), "tokens": last})
    loop.run(alone)
    a, b = losses(tmp_path / "alone"), losses(tmp_path / "run")
    assert list(a) == list(b) and len(a) * 128 == last
    np.testing.assert_allclose(list(b.values()), list(a.values()), rtol=2e-5)
    assert_alike(saved(alone), saved(config))


@pytest.mark.parametrize("failing", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_error_in_one_process_ends_the_other(tmp_path: Path, data: Path, failing: int) -> None:
    """The ids that one process reads become impossible under it. It says so in one line and is gone; the other, which
    is in a collective with it, ends at once if that was the coordinator, else by the missing heartbeat."""
    shutil.copytree(data, tmp_path / "damaged")
    folders = [data, data]
    folders[failing] = tmp_path / "damaged"
    configs = [eight(folder, tmp_path / "run", tokens=10**8, eval_tokens=10**8) for folder in folders]
    configs = [replace(config, checkpoint={"every_tokens": 10**8}) for config in configs]
    shard = tmp_path / "damaged" / "train" / "tokens-00000.bin"

    both = two(configs, tmp_path)
    try:
        wait_for_lines(tmp_path / "run", both)
        with shard.open("r+b") as file:  # after the start, which compares the files with their index
            file.write(np.full(shard.stat().st_size // 2, 9999, "<u2").tobytes())
        code, _, err = finish(both[failing])
        began = time.monotonic()
        assert code == 1, err
        line = f"gpt3-jax: error in process {failing}: {shard.parent} holds token id 9999 at token"
        assert line in err and "Traceback" not in err, err
        code, _, err = finish(both[1 - failing])
        assert code != 0, err
        assert time.monotonic() - began < (HEARTBEAT_TIMEOUT_S + 30 if failing else 30)
    finally:
        for process in both:
            process.kill()
