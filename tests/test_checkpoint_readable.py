"""A save counts once it can be read; a path is no pattern; what cannot be read is not what is damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import unprivileged

from gpt3_jax.errors import RunError, UserError
from gpt3_jax.train.checkpoint import arrays as on_disk
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.checkpoint.store import CheckpointStore

WANTED = {"x": jax.ShapeDtypeStruct((64, 64), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}


def state(value: float) -> dict[str, jax.Array]:
    return {"x": jnp.full((64, 64), value, jnp.float32), "n": jnp.int32(value)}


def store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=9, keep_every_tokens=0)


def value(folder: Path) -> int:
    """The value of the newest checkpoint that can be read."""
    restored = CheckpointReader(folder).restore(WANTED)
    assert restored is not None
    (x,) = np.unique(restored.state["x"])
    assert x == restored.state["n"]
    return int(x)


def test_a_path_stands_for_itself(tmp_path: Path) -> None:
    """Names that are patterns, each beside others that they match and that hold another checkpoint."""
    names = ["r1", "ra", "r[1]", "r[!b]", "r*", "r?", "r**", "[", "r]", "*"]
    names += ["{a,b}", "%41", "#", "'", "~", "a b", "é"]
    for number, name in enumerate(names):
        store(tmp_path / name).save(1, 1, state(number), {}, wait=True)
    assert [value(tmp_path / name) for name in names] == list(range(len(names)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *((f"/{root}/runs", f"takes /{root} for {root}://; mount it") for root in ("gs", "s3", "az", "hf")),
        ("/tmp/gpt3-jax\\runs", "takes a backslash for a slash"),
    ],
)
def test_a_folder_that_the_libraries_take_for_something_else_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        store(Path(name))
    assert name in str(caught.value) and not Path(name).exists()


def _empty_index(folder: Path) -> None:
    """What the merge of nothing leaves: every process's arrays, and no index to find them by."""
    (folder / "state" / "manifest.ocdbt").unlink()
    shutil.rmtree(folder / "state" / "d")


def _lose_the_arrays(folder: Path) -> None:
    shutil.rmtree(folder / "state" / "ocdbt.process_0" / "d")


def _cut_the_arrays(folder: Path) -> None:
    largest = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)


def _lose_the_record(folder: Path) -> None:
    (folder / "_CHECKPOINT_METADATA").unlink()


def _another_record(folder: Path) -> None:
    file = folder / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace('"tokens": 2', '"tokens": 3'))


def _other_arrays(folder: Path) -> None:
    """Another checkpoint's, under this one's record."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent.parent / "other" / "tokens-1" / "state", folder / "state")


def _all(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "harm",
    [_empty_index, _lose_the_arrays, _cut_the_arrays, _lose_the_record, _another_record, _other_arrays, _all],
)
def test_a_save_that_cannot_be_read_is_an_error_and_never_the_last_good_one(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    """Done to the checkpoint the moment it is complete, as by a disk that forgets."""
    store(tmp_path / "other").save(1, 1, {"x": jnp.zeros((8, 8)), "n": jnp.int32(0)}, {}, wait=True)
    folder = tmp_path / "checkpoints"
    s = store(folder)
    s.save(1, 1, state(1), {}, wait=True)
    save = on_disk.save

    def then_harm(path: Path, *rest: object) -> Callable[[], None]:
        written = save(path, *rest)  # type: ignore[arg-type]

        def wait() -> None:
            written()
            harm(path)

        return wait

    monkeypatch.setattr(on_disk, "save", then_harm)
    s.save(2, 2, state(2), {})
    with pytest.raises(RunError, match=r"tokens-2 was saved but cannot be read: .*; the last good one is .*tokens-1;"):
        s.wait()
    assert s.last_good() == 1 and s.pending() is None
    monkeypatch.undo()
    assert value(folder) == 1
    assert harm is _all or "tokens-2 is damaged" in said[0]
    s.save(3, 3, state(3), {}, wait=True)
    assert value(folder) == 3


def _python(program: str, *arguments: str, heeding: bool = False) -> subprocess.CompletedProcess[str]:
    head = """
        import sys
        import jax, jax.numpy as jnp
        from gpt3_jax.errors import RunError
        from gpt3_jax.train.checkpoint.reader import CheckpointReader
        from gpt3_jax.train.checkpoint.trained import load_trained
        def reader(): return CheckpointReader(sys.argv[1])
    """
    code = textwrap.dedent(head) + textwrap.dedent(program)
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(unprivileged.command(command) if heeding else command, capture_output=True, text=True)


def test_damage_is_told_in_lines_without_tracebacks(tmp_path: Path) -> None:
    """Damage that only the reading of the arrays meets, in many of them at once: the other reads end late."""
    tree = {f"x{n}": jnp.full((64, 64), n) for n in range(50)}
    s = store(tmp_path)
    for tokens in (1, 2):
        s.save(tokens, tokens, tree, {}, wait=True)
    largest = max((f for f in (tmp_path / "tokens-2").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    with largest.open("r+b") as file:
        file.write(bytes(largest.stat().st_size // 2))
    program = """
        wanted = {f"x{n}": jax.ShapeDtypeStruct((64, 64), jnp.int32) for n in range(50)}
        for _ in range(8):
            assert reader().restore(wanted).tokens == 1
    """
    done = _python(program, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 16
    assert all("tokens-2 is damaged" in line for line in lines[::2]), lines
    assert all("falling back to the previous checkpoint" in line for line in lines[1::2]), lines


@pytest.mark.parametrize(
    "locked",
    ["..", ".", "tokens-2", "tokens-2/_CHECKPOINT_METADATA", "tokens-2/state", "tokens-2/state/manifest.ocdbt", "data"],
)
def test_what_may_not_be_read_is_not_damaged(locked: str, tmp_path: Path) -> None:
    """It is named and left where it is; the one before is not taken for the newest."""
    folder = tmp_path / "run" / "checkpoints"
    s = store(folder)
    for tokens in (1, 2):
        s.save(tokens, tokens, state(tokens), {}, wait=True)
    if locked == "data":
        (path,) = (folder / "tokens-2" / "state" / "ocdbt.process_0" / "d").iterdir()
    else:
        path = folder / locked
    mode = path.stat().st_mode
    program = """
        wanted = {"x": jax.ShapeDtypeStruct((64, 64), jnp.float32), "n": jax.ShapeDtypeStruct((), jnp.int32)}
        for look in (reader().newest_record, lambda: reader().restore(wanted), lambda: load_trained(sys.argv[2])):
            try:
                look()
            except RunError as error:
                print(error)
    """
    path.chmod(0)
    try:
        done = _python(program, str(folder), str(tmp_path / "run"), heeding=True)
    finally:
        path.chmod(mode)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 3, lines
    assert all("Permission denied" in line and str(tmp_path / "run") in line for line in lines), lines
    assert sorted(p.name for p in folder.iterdir()) == ["tokens-1", "tokens-2"]
    assert value(folder) == 2


def test_only_names_that_are_written_are_checkpoints(tmp_path: Path) -> None:
    store(tmp_path).save(1, 1, state(1), {}, wait=True)
    for name in ("tokens-01", "tokens-2x", "tokens-²", "tokens-٣", "tokens--5"):
        (tmp_path / name).mkdir()
    assert CheckpointReader(tmp_path).checkpoints() == [1]
