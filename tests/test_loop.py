"""The training loop in one process: what it computes, in which order, and how it ends."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import CTX, losses, metrics, saved, tiny, write_data, write_tokens

from gpt3_jax.cluster.device_errors import device_error
from gpt3_jax.data.files import sample_starts
from gpt3_jax.data.loader import Loader
from gpt3_jax.data.stream import Stream, open_heldout
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.devices import XLA_HOST_LIMIT_VARIABLE
from gpt3_jax.errors import RunError
from gpt3_jax.model import forward
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train import loop
from gpt3_jax.train.checkpoint import arrays as on_disk
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.evaluation import Evaluator
from gpt3_jax.train.loop import Result
from gpt3_jax.train.metrics import MetricsWriter, duration, human
from gpt3_jax.train.state import init_state, state_shardings
from gpt3_jax.train.step import make_step

EIGHT = {"parallel": {"data": 8}, "train": {"batch_tokens": 128}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


# ---------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------


def plain_evaluation(config: Any, params: Any, n: int) -> tuple[float, float]:
    """Loss and bits per byte of the first n held-out sequences by `gpt3_jax.model.forward` alone."""
    heldout = open_heldout(config.data.eval, CTX, 257, None)
    rows = heldout.sequences(np.arange(n))
    logits = np.asarray(forward(params, jnp.asarray(rows[:, :-1]), config.model), np.float64)
    log_z = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    labels = rows[:, 1:]
    nats = (log_z - np.take_along_axis(logits, labels[..., None], -1)[..., 0]).sum()
    return nats / labels.size, nats / math.log(2) / int((labels != 256).sum())


@pytest.mark.parametrize(("limit", "batch", "n"), [(6, 8, 6), (0, 8, 22), (21, 16, 21), (16, 8, 16)])
def test_evaluation_is_the_plain_computation(tmp_path: Path, data: Path, limit: int, batch: int, n: int) -> None:
    """On 1 and on 8 devices, with and without a last batch that is padded."""
    write_tokens(tmp_path / "heldout", 21 * CTX + 3, seed=5)
    found = []
    for devices in (1, 8):
        config = tiny(
            data,
            tmp_path / "run",
            parallel={"data": devices},
            train={"eval_sequences": limit},
            data={"eval": [{"path": str(tmp_path / "heldout")}]},
        )
        mesh = make_mesh(config.parallel, jax.devices()[:devices])
        state = init_state(config, mesh)
        # Weights that are not nearly uniform in their predictions, so that a lost or doubled row shows.
        params = jax.jit(
            lambda p: jax.tree.map(lambda x: 8 * x, p), out_shardings=state_shardings(config, mesh).params
        )(state.params)
        heldout = open_heldout(config.data.eval, CTX, 257, None)
        result = Evaluator(config, mesh, heldout, ByteTokenizer(), batch)(params)
        assert result.tokens == n * CTX
        loss, bits = plain_evaluation(config, jax.device_get(params), n)
        assert result.loss == pytest.approx(loss, rel=2e-6)
        assert result.bits_per_byte == pytest.approx(bits, rel=2e-6)
        found.append(result.loss)
    assert found[0] == pytest.approx(found[1], rel=1e-6)


# ---------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------


def test_a_ramped_run_compiles_first_and_reads_metrics_one_step_late(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batch sizes, evaluations and checkpoints on the way: after the first step nothing is compiled, a step's
    metrics are read after the next one was sent off, and nothing else is read but by evaluations and checkpoints."""
    config = tiny(
        data,
        tmp_path / "run",
        parallel={"data": 8},
        train={
            "tokens": 4096, "batch_tokens": 512, "ramp_start_tokens": 128, "ramp_tokens": 1536, "ramp_sizes": 3,
            "eval_tokens": 1024, "tensorboard": True,
        },
        checkpoint={"every_tokens": 2048},
    )  # fmt: skip
    events: list[str] = []
    device_get = jax.device_get

    def recorded_step(*args: Any) -> Any:
        jitted = make_step(*args)

        class Step:
            def trace(self, *shapes: Any) -> Any:
                lowered = jitted.trace(*shapes).lower()
                events.append(f"compile {shapes[1].shape[0]}")
                compiled = lowered.compile()

                def call(state: Any, rows: Any) -> Any:
                    events.append("step")
                    return compiled(state, rows)

                call.memory_analysis = compiled.memory_analysis  # type: ignore[attr-defined]
                lower = type("Lowered", (), {"compile": lambda self: call})
                return type("Traced", (), {"lower": lambda self: lower()})()

        return Step()

    def recorded_get(tree: Any) -> Any:
        events.append("metrics" if hasattr(tree, "grad_norm") else "other")
        return device_get(tree)

    def compiled(event: str, duration_secs: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            events.append("XLA")

    monkeypatch.setattr(loop, "make_step", recorded_step)
    monkeypatch.setattr(jax, "device_get", recorded_get)
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        result = loop.run(config)
    finally:
        jax.monitoring.clear_event_listeners()

    begin = events.index("step")
    assert [e for e in events[:begin] if e.startswith("compile")] == ["compile 8", "compile 16", "compile 32"]
    assert "XLA" in events[:begin] and "XLA" not in events[begin:]
    lines = metrics(tmp_path / "run")
    steps = [line for line in lines if line["kind"] == "train"]
    assert sorted({line["batch_tokens"] for line in steps}) == [128, 256, 512]
    assert events[begin:].count("step") == events[begin:].count("metrics") == len(steps)
    # Behind the last step of a segment (before an evaluation or checkpoint) stands its own reading; else the one
    # before's: so two steps come first, and never two readings without a step between, but at such an end.
    assert events[begin : begin + 4] == ["step", "step", "metrics", "step"]
    reads_without_step = sum(a == b == "metrics" for a, b in itertools.pairwise(events[begin:]))
    # An evaluation reads once, a checkpoint once (its checksums): "other" on either side of a segment.
    others = events[begin:].count("other")
    evaluations = [line for line in lines if line["kind"] == "eval"]
    assert others == len(evaluations) + 2
    assert reads_without_step <= others
    assert result == Result(
        steps[-1]["loss"], steps[-1]["tokens"], tmp_path / "run" / "checkpoints", result.evaluation, len(steps), ""
    )
    assert result.evaluation is not None and result.evaluation.loss == evaluations[-1]["loss"]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_the_step_lets_nothing_cross_to_or_from_the_host(tmp_path: Path, data: Path) -> None:
    """The guard that the loop puts around the step does stop an implicit transfer: rows given as numpy."""
    config = tiny(data, tmp_path / "run", **EIGHT)
    mesh = make_mesh(config.parallel)
    step = make_step(config, mesh)
    with jax.transfer_guard("disallow"), pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        step(init_state(config, mesh), np.zeros((8, CTX + 1), np.int32))


def test_training_lowers_the_loss_and_leaves_a_record(tmp_path: Path, data: Path, said: list[str]) -> None:
    config = tiny(data, tmp_path / "run", **EIGHT)
    result = loop.run(config)
    found = losses(tmp_path / "run")
    assert list(found) == list(range(128, 1024 + 1, 128)) and result.loss == found[1024]
    assert found[1024] < found[128] - 0.5
    evals = [line["tokens"] for line in metrics(tmp_path / "run") if line["kind"] == "eval"]
    assert evals == [256, 512, 768, 1024]
    state = saved(config)
    assert (int(state.step), int(state.sequences), int(state.skipped)) == (8, 64, 0)
    assert not any("\n" in line for line in said)


# ---------------------------------------------------------------------------------------------------------------
# A loss that is not finite
# ---------------------------------------------------------------------------------------------------------------

# So large that after the first updates the residual stream overflows fp32.
OVERFLOW = {"peak_lr": 1e30, "warmup_tokens": 0, "clip_norm": 0.0, "weight_decay": 0.0, "decay_tokens": 10**9}


def overflowing(data: Path, run_dir: Path, policy: str) -> Any:
    return tiny(
        data,
        run_dir,
        parallel={"data": 8},
        optimizer=OVERFLOW,
        train={"batch_tokens": 128, "nonfinite": policy, "eval_tokens": 10**9},
        checkpoint={"every_tokens": 128},
    )


def test_a_loss_that_is_not_finite_stops_the_run_and_is_explained(tmp_path: Path, data: Path) -> None:
    config = overflowing(data, tmp_path / "run", "stop")
    with pytest.raises(RunError) as caught:
        loop.run(config)
    line = str(caught.value)
    assert "\n" not in line
    match = re.search(r"at step (\d+), sequences (\d+) to (\d+) ", line)
    assert match is not None
    step, first, last = map(int, match.groups())
    assert step > 1 and first == 8 * (step - 1) and last == first + 7
    assert re.search(r"from .*train, epoch 0, token \d+, document \d+ to ", line)
    assert f"the last good checkpoint is at {128 * (step - 1):,} tokens" in line
    state = saved(config)  # the newest checkpoint is of before, and sound
    assert int(state.step) == step - 1 and int(state.skipped) == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert list(losses(tmp_path / "run")) == [128 * n for n in range(1, step)]


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path: Path, data: Path, said: list[str]) -> None:
    config = overflowing(data, tmp_path / "run", "skip")
    result = loop.run(config)
    assert result.tokens == 1024
    state = saved(config)
    lines = [line for line in metrics(tmp_path / "run") if line["kind"] == "train"]
    skipped = [line["skipped"] for line in lines]
    assert skipped[0] == 0 and skipped[-1] == int(state.skipped) > 0
    assert skipped == sorted(skipped)
    assert sum("update skipped" in line for line in said) == int(state.skipped)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # NaN and Infinity are not JSON


# ---------------------------------------------------------------------------------------------------------------
# Stopping, failing
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_with_a_checkpoint(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = tiny(data, tmp_path / "run", **EIGHT)
    read = Loader.batch

    def signalling(self: Any, first: int, count: int) -> Any:
        if first == 24:
            os.kill(os.getpid(), number)
        return read(self, first, count)

    monkeypatch.setattr(Loader, "batch", signalling)
    result = loop.run(config)
    assert result.stopped == number.name and result.evaluation is None
    assert result.tokens < 1024 and int(saved(config).sequences) * CTX == result.tokens
    monkeypatch.setattr(Loader, "batch", read)
    assert loop.run(config).stopped == ""
    assert list(losses(tmp_path / "run")) == list(range(128, 1024 + 1, 128))


def test_unreadable_data_in_the_loaders_thread_is_one_line(tmp_path: Path) -> None:
    """Between the samples that are looked at when a file is opened, ids show only when they are read."""
    folder = write_data(tmp_path / "data")
    tokens = np.full(2**20, 9999, "<u2")
    for start, count in sample_starts(tokens.nbytes):
        tokens[max(0, start // 2 - 8) : (start + count) // 2 + 8] = 7
    tokens.tofile(folder / "train.bin")
    data = {"tokenizer": "bytes", "train": [{"path": str(folder / "train.bin")}], "eval": []}
    with pytest.raises(RunError, match=r"holds token id 9999 at token .* vocabulary ends at 256"):
        loop.run(tiny(folder, tmp_path / "run", data=data, **EIGHT))


def test_token_files_that_change_under_a_run_end_it_before_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_data(tmp_path / "data")
    shard = folder / "train" / "tokens-00000.bin"
    read = Loader.batch

    def changing(self: Loader, first: int, count: int) -> jax.Array:
        if first == 8:
            tokens = np.fromfile(shard, "<u2")
            tokens[-1] ^= 1
            tokens.tofile(shard)
        return read(self, first, count)

    monkeypatch.setattr(Loader, "batch", changing)
    with pytest.raises(RunError, match=r"tokens-00000\.bin does not have the checksum"):
        loop.run(tiny(folder, tmp_path / "run", **EIGHT))
    assert not list((tmp_path / "run" / "checkpoints").glob("tokens-*"))


def slow_disk(monkeypatch: pytest.MonkeyPatch, failure: OSError | None = None) -> None:
    """Lets a save begin, and end (or fail) only when it is waited for: an error then meets it under way."""
    save, waited_for = on_disk.save, threading.Event()

    def slow(*args: Any) -> Callable[[], None]:
        written = save(*args)

        def wait() -> None:
            assert waited_for.wait(60)
            written()
            if failure is not None:
                raise failure

        return wait

    def then(method: Callable[[CheckpointStore], None]) -> Callable[[CheckpointStore], None]:
        def waits(store: CheckpointStore) -> None:
            waited_for.set()
            method(store)

        return waits

    monkeypatch.setattr(on_disk, "save", slow)
    for name in ("wait", "close"):
        monkeypatch.setattr(CheckpointStore, name, then(getattr(CheckpointStore, name)))


def broken_behind(monkeypatch: pytest.MonkeyPatch, first: int) -> None:
    read = Stream.sequences

    def sequences(self: Stream, indices: np.ndarray) -> np.ndarray:
        if indices[0] >= first:
            raise RunError("the disk with the data is gone")
        return read(self, indices)

    monkeypatch.setattr(Stream, "sequences", sequences)


def test_an_error_lets_the_save_under_way_finish(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow_disk(monkeypatch)
    broken_behind(monkeypatch, 5 * 8)
    config = tiny(data, tmp_path / "run", **EIGHT, checkpoint={"every_tokens": 512})
    with pytest.raises(RunError, match=r"^the disk with the data is gone$"):
        loop.run(config)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["tokens-512"]
    assert int(saved(config).sequences) == 32


def test_an_error_does_not_hide_that_the_save_under_way_failed_too(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    slow_disk(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    broken_behind(monkeypatch, 5 * 8)
    with pytest.raises(RunError, match=r"^the disk with the data is gone$"):
        loop.run(tiny(data, tmp_path / "run", **EIGHT, checkpoint={"every_tokens": 512}))
    assert re.match(
        r"could not save checkpoint .*tokens-512: the disk is full \(.*; there is no good checkpoint yet", said[-1]
    )


def test_a_loss_that_is_not_finite_is_named_even_when_the_save_before_fails(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CheckpointStore, "wait", lambda _: (_ for _ in ()).throw(RunError("the disk is full")))
    with pytest.raises(RunError, match=r"are not both finite at step .*; and the disk is full$"):
        loop.run(overflowing(data, tmp_path / "run", "stop"))


# ---------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------


def test_metrics_go_on_where_the_checkpoint_stands(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0, tensorboard=True)
    for tokens in (10, 20, 30):
        writer.write("train", tokens, {"loss": tokens, "grad_norm": math.inf})
    writer.write("eval", 20, {"loss": 0.5})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "tokens": 2')  # killed in mid-line
    writer = MetricsWriter(tmp_path, 20, tensorboard=True)
    writer.write("eval", 20, {"loss": 0.5})  # said before; a finished run that is started again says it again
    writer.write("train", 30, {"loss": 31})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["tokens"], line["loss"]) for line in lines] == [
        ("train", 10, 10), ("train", 20, 20), ("eval", 20, 0.5), ("train", 30, 31),
    ]  # fmt: skip
    assert lines[0]["grad_norm"] is None
    assert len(list((tmp_path / "tensorboard").iterdir())) >= 1


def test_metrics_that_nobody_would_find_are_an_error(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path / "run", 0, tensorboard=False)
    writer.write("train", 10, {"loss": 1.0})
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(RunError, match=r"metrics\.jsonl was removed while the run was writing it"):
        writer.write("train", 20, {"loss": 1.0})


def test_numbers_for_people() -> None:
    assert [human(n) for n in (0, 999, 999.6, 1234567, 999_999, 3e11)] == ["0", "999", "1k", "1.23M", "1M", "300B"]
    assert [duration(s) for s in (0, 59.9, 61, 3723, 90_000)] == ["0s", "59s", "1m01s", "1h02m", "1d01h"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB", "out of memory on a device"),
        (
            f"RESOURCE_EXHAUSTED: out of host memory; try to increase {XLA_HOST_LIMIT_VARIABLE}",
            "XLA's limit on host memory is reached",
        ),
        ("INTERNAL: something else", None),
    ],
)
def test_what_devices_run_out_of_is_one_line(words: str, line: str | None) -> None:
    said = device_error(jax.errors.JaxRuntimeError(words))
    assert said is None if line is None else said is not None and said.startswith(line) and "set" in said
