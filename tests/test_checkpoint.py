"""The checkpoint store: what was saved comes back bit for bit, or is refused aloud."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gpt3_jax.errors import RunError, UserError
from gpt3_jax.train.checkpoint import arrays as on_disk
from gpt3_jax.train.checkpoint.integrity import array_checksums
from gpt3_jax.train.checkpoint.reader import CheckpointReader
from gpt3_jax.train.checkpoint.storage_errors import disk_full
from gpt3_jax.train.checkpoint.store import CheckpointStore

RECORD = {"config": {"model": {"n_layers": 2}}, "sequences": 12_345_678_901, "versions": {"jax": jax.__version__}}


@flax.struct.dataclass
class State:
    params: dict[str, jax.Array]
    opt_state: Any
    step: jax.Array


def mesh(*shape: int) -> Mesh:
    names = ("data", "tensor")[: len(shape)]
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * len(shape))


def sharded_8(leaf: Any) -> NamedSharding:
    return NamedSharding(mesh(8), P("data") if leaf.ndim else P())


def make_state(seed: int, sharding: Callable[[Any], Any] = sharded_8) -> State:
    rng = np.random.default_rng(seed)
    params = {
        "wte": jnp.asarray(rng.standard_normal((256, 96)), jnp.float32),
        "block.w": jnp.asarray(rng.standard_normal((16, 8, 8)), jnp.bfloat16),
        "bias": jnp.asarray(rng.standard_normal(40), jnp.float32),
    }
    moments = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)
    opt_state = optax.adamw(1e-3).init(params)
    opt_state = (opt_state[0]._replace(mu=moments, nu=jax.tree.map(jnp.square, moments)), *opt_state[1:])
    state = State(params=params, opt_state=opt_state, step=jnp.int32(seed))
    return jax.tree.map(lambda x: jax.device_put(x, sharding(x)), state)


def abstract(state: Any, sharding: Callable[[Any], Any] = sharded_8) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding(x)), state)


def store(folder: Path, *, keep_last: int = 10, keep_every: int = 0) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=keep_last, keep_every_tokens=keep_every)


def same(a: Any, b: Any) -> bool:
    """Whether two trees of one structure have the same dtypes and bits."""
    assert str(jax.tree.structure(a)) == str(jax.tree.structure(b))
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints at 100 (seed 1) and 200 tokens (seed 2); copy it before changing it."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    s = store(folder)
    for seed in (1, 2):
        s.save(100 * seed, seed, make_state(seed), {**RECORD, "seed": seed})
    s.close()
    return folder


@pytest.fixture
def two(two_saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two_saved, tmp_path / "checkpoints"))


def test_what_was_saved_comes_back(two: Path, said: list[str]) -> None:
    restored = store(two).restore(abstract(make_state(0)))
    assert restored is not None and said == []
    assert same(restored.state, make_state(2))
    assert (restored.step, restored.tokens, restored.record) == (2, 200, {**RECORD, "seed": 2})
    assert all(x.sharding == sharded_8(x) for x in jax.tree.leaves(restored.state))
    assert store(two).newest_record() == (200, {**RECORD, "seed": 2})


def test_a_folder_without_checkpoints_is_none_and_not_an_error(tmp_path: Path) -> None:
    assert CheckpointReader(tmp_path / "absent").restore(abstract(make_state(0))) is None
    assert CheckpointReader(tmp_path / "absent").newest_record() is None
    assert not (tmp_path / "absent").exists()


def test_restores_onto_other_meshes(two: Path) -> None:
    def grid(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh(2, 4), P("tensor", "data") if leaf.ndim > 1 else P())

    def replicated(leaf: Any) -> NamedSharding:
        return NamedSharding(mesh(8), P())

    def one(leaf: Any) -> Any:
        return jax.sharding.SingleDeviceSharding(jax.devices()[3])

    # 8 -> 2x4 -> replicated -> 1 -> 8, each through a checkpoint of its own
    for n, sharding in enumerate((grid, replicated, one, sharded_8)):
        s = store(two)
        restored = s.restore(abstract(make_state(0), sharding))
        assert restored is not None and restored.tokens == 200 + n
        assert same(restored.state, make_state(2))
        assert all(x.sharding == sharding(x) for x in jax.tree.leaves(restored.state))
        s.save(201 + n, 3, restored.state, RECORD, wait=True)


def test_checksums_do_not_depend_on_sharding_but_on_every_position() -> None:
    x = jnp.arange(64 * 24, dtype=jnp.float32).reshape(64, 24)
    specs = [P(), P("data"), P(None, "data"), P("data", "tensor"), P("tensor")]
    sums = {array_checksums({"x": jax.device_put(x, NamedSharding(mesh(2, 4), s))})["x"] for s in specs}
    assert len(sums) == 1
    # shards swapped, rows swapped, elements swapped, one bit, one sign of zero: values that a plain sum would miss
    low_bits_zero = jnp.asarray(np.random.default_rng(0).standard_normal((64, 24)), jnp.bfloat16).astype(jnp.float32)
    base = array_checksums({"x": low_bits_zero})["x"]
    for a, b in itertools.combinations(range(0, 64, 8), 2):
        swapped = np.array(low_bits_zero)
        swapped[[a, b]] = swapped[[b, a]]
        assert array_checksums({"x": jnp.asarray(swapped)})["x"] != base
    assert array_checksums({"x": jnp.roll(low_bits_zero, 1, axis=1)})["x"] != base
    assert array_checksums({"x": jnp.zeros(8)}) != array_checksums({"x": jnp.zeros(8).at[3].set(-0.0)})
    assert array_checksums({"x": jnp.zeros(8)}) != array_checksums({"x": jnp.zeros(7)})


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint8", "bfloat16", "float16", "int32", "float32"])
def test_checksums_see_a_bit_of_every_dtype(dtype: str) -> None:
    raw = np.zeros(16 * jnp.dtype(dtype).itemsize, np.uint8)
    base = array_checksums({"x": jnp.asarray(raw.view(jnp.dtype(dtype)))})
    bits = [0] if dtype == "bool" else range(8)
    for byte, bit in itertools.product(range(0, raw.size, 3), bits):
        changed = raw.copy()
        changed[byte] ^= 1 << bit
        assert array_checksums({"x": jnp.asarray(changed.view(jnp.dtype(dtype)))}) != base


def test_one_flipped_bit_never_becomes_a_wrong_number(tmp_path: Path, said: list[str]) -> None:
    """Every file of the newest checkpoint, seeded positions: the newest unharmed, or the one before, said aloud."""
    first, second = ({"wte": make_state(seed).params["wte"], "step": make_state(seed).step} for seed in (1, 2))
    s = store(tmp_path)
    s.save(100, 1, first, {**RECORD, "seed": 1})
    s.save(200, 2, second, {**RECORD, "seed": 2}, wait=True)
    rng = random.Random(7)
    newest = tmp_path / "tokens-200"
    files = sorted(f for f in newest.rglob("*") if f.is_file() and f.stat().st_size)
    places = [(f, rng.randrange(8 * f.stat().st_size)) for f in files]
    sizes = [f.stat().st_size for f in files]
    places += [(f, rng.randrange(8 * f.stat().st_size)) for f in rng.choices(files, sizes, k=34)]
    wanted = abstract(first)
    fell_back = 0
    for file, place in places:
        said.clear()
        good = file.read_bytes()
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        file.write_bytes(bad)
        restored = store(tmp_path).restore(wanted)
        file.write_bytes(good)
        where = f"bit {place} of {file.relative_to(newest)}: {said}"
        assert restored is not None, where
        if restored.tokens == 200:
            assert same(restored.state, second) and restored.record["seed"] == 2 and said == [], where
        else:
            assert same(restored.state, first) and restored.record["seed"] == 1, where
            assert "tokens-200 is damaged" in said[0] and "tokens-100" in said[-1], where
            fell_back += 1
    assert len(places) >= 40 and fell_back >= 25  # else the positions no longer reach the data
    assert store(tmp_path).restore(wanted).tokens == 200  # type: ignore[union-attr]


def _flip_data(folder: Path) -> None:
    """One bit in the middle of the array data: Orbax alone loads it as a wrong number."""
    data = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 3] ^= 1
    data.write_bytes(content)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _truncate(folder: Path) -> None:
    data = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def _shift(folder: Path) -> None:
    """Every number in its place, one byte off."""
    data = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data.write_bytes(data.read_bytes()[1:] + b"\0")


def _lose_a_file(folder: Path) -> None:
    max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size).unlink()


def _swap_leaves(folder: Path) -> None:
    """Another whole checkpoint's arrays under this one's record."""
    shutil.rmtree(folder / "state")
    shutil.copytree(folder.parent / "tokens-100" / "state", folder / "state")


@pytest.mark.parametrize("harm", [_flip_data, _empty, _truncate, _shift, _lose_a_file, _swap_leaves])
def test_a_damaged_newest_falls_back_aloud_and_does_not_block_saving(
    two: Path, harm: Callable[[Path], None], said: list[str]
) -> None:
    harm(two / "tokens-200")
    s = store(two)
    restored = s.restore(abstract(make_state(0)))
    assert restored is not None and same(restored.state, make_state(1))
    assert f"{two}/tokens-200 is damaged" in said[0] and f"{two}/tokens-100" in said[1]
    assert sorted(p.name for p in two.iterdir()) == ["tokens-100", "tokens-200"]  # reading changes nothing
    s.save(200, 2, make_state(5), RECORD, wait=True)
    assert sorted(p.name for p in two.iterdir()) == ["damaged-tokens-200", "tokens-100", "tokens-200"]
    assert "damaged-tokens-200" in said[-1]
    again = store(two).restore(abstract(make_state(0)))
    assert again is not None and again.tokens == 200 and same(again.state, make_state(5))


def test_never_a_silent_restart_from_zero(two: Path) -> None:
    for name in ("tokens-100", "tokens-200"):
        _flip_data(two / name)
    with pytest.raises(RunError, match=r"(?s)none of the checkpoints.*tokens-200.*tokens-100") as caught:
        store(two).restore(abstract(make_state(0)))
    assert "\n" not in str(caught.value)
    for name in ("tokens-100", "tokens-200"):
        (two / name).rename(two / f"damaged-{name}")
    for read in (lambda: store(two).restore(abstract(make_state(0))), lambda: store(two).newest_record()):
        with pytest.raises(RunError, match="damaged-tokens-100 damaged-tokens-200"):
            read()


def test_newest_record_passes_over_a_damaged_record(two: Path, said: list[str]) -> None:
    file = two / "tokens-200" / "_CHECKPOINT_METADATA"
    file.write_text(file.read_text().replace("12345678901", "12345678902"))  # valid JSON, another data position
    assert store(two).newest_record() == (100, {**RECORD, "seed": 1})
    assert "tokens-200 is damaged" in said[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {**p, "wte": jnp.zeros((256, 97))}, r"params/wte is \(256, 96\) float32 .* but \(256, 97\) float32"),
        (lambda p: {**p, "bias": jnp.zeros(40, jnp.bfloat16)}, r"params/bias is \(40,\) float32 .* \(40,\) bfloat16"),
        (lambda p: {**p, "extra": jnp.zeros(8)}, "has no params/extra"),
        (lambda p: {k: v for k, v in p.items() if k != "bias"}, "has params/bias, which"),
    ],
)
def test_another_configuration_is_refused_by_name(two: Path, change: Callable[[Any], Any], message: str) -> None:
    state = make_state(0)
    other = state.replace(params=change(state.params))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=message) as caught:
        store(two).restore(abstract(other, lambda x: NamedSharding(mesh(8), P())))
    assert "\n" not in str(caught.value)


def test_reads_the_parameters_alone(two: Path) -> None:
    params = make_state(2).params
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)  # no sharding: one device
    restored = CheckpointReader(two).restore(wanted, only="params")
    assert restored is not None and same(restored.state, params)
    assert restored.record == {**RECORD, "seed": 2}
    older = CheckpointReader(two).restore(wanted, only="params", tokens=100)
    assert older is not None and same(older.state, make_state(1).params)
    with pytest.raises(UserError, match=r"no checkpoint at 150 tokens.*\[100, 200\]"):
        CheckpointReader(two).restore(wanted, only="params", tokens=150)
    _flip_data(two / "tokens-100")
    with pytest.raises(RunError, match="tokens-100"):  # asked for by name: no fall-back
        CheckpointReader(two).restore(abstract(make_state(0)), tokens=100)


def test_keeps_the_last_and_the_first_at_each_multiple(tmp_path: Path) -> None:
    s = store(tmp_path, keep_last=2, keep_every=100)
    state = {"x": jnp.zeros(8)}
    for tokens in (40, 80, 120, 160, 230, 250, 290, 330):
        s.save(tokens, 1, state, {})
    s.close()
    assert CheckpointReader(tmp_path).checkpoints() == [120, 230, 290, 330]
    assert all(p.name.startswith("tokens-") for p in tmp_path.iterdir())


def test_saving_twice_at_the_same_tokens(two: Path) -> None:
    s = store(two)
    restored = s.restore(abstract(make_state(0)))
    assert restored is not None
    s.save(200, 2, restored.state, RECORD, wait=True)  # just restored: nothing to do
    s.save(300, 3, make_state(3), RECORD)
    s.save(300, 3, make_state(3), RECORD, wait=True)  # the final checkpoint may fall on the last regular one
    with pytest.raises(RunError, match="tokens-300: a checkpoint that this run did not restore"):
        store(two).save(300, 3, make_state(4), RECORD, wait=True)
    assert same(store(two).restore(abstract(make_state(0))).state, make_state(3))  # type: ignore[union-attr]


def test_the_state_may_be_donated_at_once(tmp_path: Path) -> None:
    @jax.jit
    def fresh(i: jax.Array) -> jax.Array:
        return jnp.full((1024, 1024), i, jnp.float32)

    overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    s = store(tmp_path)
    for i in range(1, 5):
        x = jax.device_put(fresh(jnp.float32(i)), NamedSharding(mesh(8), P("data")))
        s.save(i, i, {"x": x}, {})
        for _ in range(3):
            x = overwrite(x)
        x.block_until_ready()
    s.close()
    wanted = {"x": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    for i in range(1, 5):
        restored = s.restore(wanted, tokens=i)
        assert restored is not None and bool((restored.state["x"] == i).all())


PROGRAM = """
    import os, signal, sys
    import jax, jax.numpy as jnp
    from gpt3_jax.errors import RunError
    from gpt3_jax.train.checkpoint.store import CheckpointStore
    s = CheckpointStore(sys.argv[1], keep_last=3, keep_every_tokens=0)
    state = {"x": jnp.arange(int(sys.argv[2]), dtype=jnp.float32)}
"""


def _program(tail: str, folder: Path, size: int) -> list[str]:
    code = textwrap.dedent(PROGRAM) + textwrap.dedent(tail)
    return [sys.executable, "-c", code, str(folder), str(size)]


def test_kill_9_in_the_middle_of_a_save(tmp_path: Path, said: list[str]) -> None:
    size = 32 * 2**20
    tail = """
        s.save(1, 1, state, {"n": 1}, wait=True)
        s.save(2, 2, state, {"n": 2}, wait=True)
    """
    process = subprocess.Popen(_program(tail, tmp_path, size))
    while process.poll() is None and not list(tmp_path.glob("tokens-2*/state/ocdbt.process_0/d/*")):
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["tokens-1", "tokens-2.orbax-checkpoint-tmp"], "the kill missed the save: make the state larger"
    s = store(tmp_path)
    restored = s.restore({"x": jax.ShapeDtypeStruct((size,), jnp.float32)})
    assert restored is not None and restored.record == {"n": 1} and said == []
    s.save(3, 3, {"x": jnp.zeros(4)}, {}, wait=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokens-1", "tokens-3"]  # the remains are gone


def test_a_save_that_the_disk_refuses(tmp_path: Path) -> None:
    """A limit on file sizes, as real as a full disk to the one who writes; the run before it stays readable."""
    tail = """
        import resource
        s.save(1, 1, {"x": jnp.zeros(4)}, {}, wait=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        s.save(2, 2, state, {})
        try:
            s.wait()
        except RunError as error:
            print(error)
            sys.exit(error.exit_code)
    """
    done = subprocess.run(_program(tail, tmp_path, 2**20), capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (line,) = done.stdout.splitlines()
    assert f"could not save checkpoint {tmp_path}/tokens-2" in line and "File too large" in line
    assert f"the last good one is {tmp_path}/tokens-1" in line
    assert "Traceback" not in done.stderr, "one line, not Orbax's pages"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokens-1"]


def test_a_full_disk_is_called_so() -> None:
    assert disk_full(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert disk_full(ValueError('RESOURCE_EXHAUSTED: Error writing "x": No space left on device'))
    assert not disk_full(OSError(errno.EIO, os.strerror(errno.EIO)))


def test_check_raises_the_failure_of_a_background_save(tmp_path: Path) -> None:
    s = store(tmp_path / "c")
    s.check()
    s.save(1, 1, {"x": jnp.zeros(4)}, {})
    deadline = time.monotonic() + 30
    while not (tmp_path / "c" / "tokens-1").exists() and time.monotonic() < deadline:
        s.check()
        time.sleep(0.01)
    s.wait()
    shutil.rmtree(tmp_path / "c")
    (tmp_path / "c").write_text("a file where the folder was")
    with pytest.raises(RunError, match="could not save checkpoint"):
        s.save(2, 2, {"x": jnp.zeros(4)}, {})
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            s.check()
            time.sleep(0.01)


def test_a_save_that_timed_out_on_its_disk_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk's ETIMEDOUT is a TimeoutError, as is the answer of a save that is still running."""
    s = store(tmp_path)
    s.save(1, 1, {"x": jnp.zeros(4)}, {}, wait=True)
    save = on_disk.save

    def timed_out(*args: Any) -> Callable[[], None]:
        written = save(*args)

        def wait() -> None:
            written()
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))

        return wait

    monkeypatch.setattr(on_disk, "save", timed_out)
    s.save(2, 2, {"x": jnp.zeros(4)}, {})
    with pytest.raises(RunError, match=r"could not save checkpoint .*tokens-2: .*timed out; the last good one is .*-1"):
        while s.pending() == 2:
            s.check()
            time.sleep(0.01)
    assert s.pending() is None and s.last_good() == 1


def test_a_folder_that_cannot_be_listed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("where a folder was")
    reader = CheckpointReader(tmp_path / "file")
    for look in (reader.checkpoints, reader.newest_record, lambda: reader.restore({})):
        with pytest.raises(RunError, match=r"cannot read the checkpoint folder .*file: NotADirectoryError"):
            look()


def test_a_relative_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = make_state(1)
    with_relative = store(Path("runs/checkpoints"))
    with_relative.save(100, 1, state, {}, wait=True)
    restored = store(Path("runs/checkpoints")).restore(abstract(state))
    assert restored is not None and same(restored.state, state)
