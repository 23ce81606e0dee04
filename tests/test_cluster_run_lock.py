"""One run at a time in a folder. (A run that is refused: test_train_cli.py.)"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpt3_jax.cluster import run_lock
from gpt3_jax.cluster.run_lock import RunLock
from gpt3_jax.errors import RunError, UserError


@pytest.fixture
def held_elsewhere(tmp_path: Path) -> Iterator[int]:
    """The lock as a file server keeps it for another machine: held, and none of this machine's processes has it."""
    file = os.open(tmp_path / "run.lock", os.O_RDWR | os.O_CREAT)
    os.write(file, b"process 7 on another-machine\n")
    fcntl.flock(file, fcntl.LOCK_EX)
    yield file
    os.close(file)


def test_held_and_free_again(tmp_path: Path, said: list[str]) -> None:
    with RunLock(tmp_path / "new" / "run"):
        with pytest.raises(UserError, match=rf"in use by another run \(process {os.getpid()} on "):
            RunLock(tmp_path / "new" / "run").__enter__()
        with RunLock(tmp_path / "other"):  # another folder is another matter
            pass
    with RunLock(tmp_path / "new" / "run"):
        pass
    assert said == []


def test_another_machines_lock_is_waited_for(
    tmp_path: Path, held_elsewhere: int, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(run_lock, "_RETRY_S", 0.05)
    release = threading.Timer(0.3, fcntl.flock, (held_elsewhere, fcntl.LOCK_UN))
    release.start()
    with RunLock(tmp_path):
        assert (tmp_path / "run.lock").read_text().startswith(f"process {os.getpid()} on ")
    release.join()
    (line,) = said
    assert "in use by another run (process 7 on another-machine); waiting up to 180 s" in line


def test_another_machines_lock_is_not_waited_for_for_ever(
    tmp_path: Path, held_elsewhere: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "_RETRY_S", 0.05)
    monkeypatch.setattr(run_lock, "_WAIT_S", 0.2)
    with pytest.raises(RunError, match=r"still in use by another run \(process 7 on another-machine\)"):
        RunLock(tmp_path).__enter__()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match=r"cannot write into .*file: File exists; choose another"):
        RunLock(tmp_path / "file").__enter__()
