"""`gpt3-jax bench`: that it runs what it says and counts it right. No figure is asserted: machines differ."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from gpt3_jax import model
from gpt3_jax.bench import ceilings, checkpoint, decode, evaluate, mfu, startup, step, timing, workload
from gpt3_jax.bench.timing import Spread
from gpt3_jax.cli.bench import main
from gpt3_jax.cluster import start_up
from gpt3_jax.config import Config, load_config, preset, replace, to_yaml
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.generation import Generator, Piece
from gpt3_jax.model.params import count_params, train_flops_per_token
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.plan.receipt import Flops
from gpt3_jax.program import compiled as program
from gpt3_jax.program.hlo import Program
from gpt3_jax.quantities import count
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.state import abstract_state, init_state
from gpt3_jax.train.step import make_step

TINY = {
    "model": {
        "n_layers": 1, "attention_pattern": ["dense"], "d_model": 16, "n_heads": 2, "n_ctx": 16, "n_vocab": 61,
        "vocab_multiple": 16, "band_width": 4, "dtype": "float32",
    },
    "optimizer": {"warmup_tokens": 256, "decay_tokens": 1024},
    "train": {"batch_tokens": 512},
    "memory": {"loss_chunk": 32, "remat": "none"},
    "data": {"tokenizer": "bytes"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_large_matmuls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU's rate is measured on matmuls that take seconds with eight pretended devices."""
    monkeypatch.setattr(timing, "MATMUL_SIZE", 64)


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return str(path)


@pytest.fixture
def config(config_file: str) -> Config:
    return load_config([config_file])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where temporary folders go; empty again at the end of each test that uses it."""
    path = tmp_path / "temporary"
    path.mkdir()
    return path


# -- statistics and conventions ------------------------------------------------------------------------------------


def test_a_spread_is_of_all_its_values() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 100.0, 4.0]) == Spread(4.0, 2.0, 5.0, 1.0, 100.0, 5)


def test_without_a_number_measurements_fill_their_time() -> None:
    assert timing.repetitions(7, 100.0, 20, 20.0) == 7
    assert timing.repetitions(None, 0.1, 20, 20.0) == 20
    assert timing.repetitions(None, 4.0, 20, 20.0) == 5
    assert timing.repetitions(None, 100.0, 20, 20.0) == 3


def test_a_matmuls_rate_is_that_of_the_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    took = iter([9.0, 0.5, *[7.0] * 8])

    def seconds(run: Any) -> float:
        a = run()
        assert (a.shape, a.dtype) == ((64, 64), jax.numpy.float32)
        return next(took)

    monkeypatch.setattr(timing, "seconds", seconds)
    assert timing.matmul_rate(jax.devices()[0], "bfloat16") == 2 * 64**3 / 0.5


def _mesh(kind: str, platform: str, devices: int) -> Any:
    device = SimpleNamespace(device_kind=kind, platform=platform)
    return SimpleNamespace(devices=np.array([device] * devices, object), size=devices)


def test_mfu_is_each_conventions_work_over_the_devices_peak() -> None:
    peaks, note = mfu.peaks(_mesh("NVIDIA H200", "gpu", 8), "bfloat16")
    assert (note, [peak.flops for peak in peaks]) == ("", [8 * 989.4e12])
    model = preset("gpt3-small").model
    tokens = 2**14
    flops = Flops(
        6.0 * count_params(model) * tokens,
        (6.0 * count_params(model) + 12 * 12 * 768 * 2048) * tokens,
        train_flops_per_token(model, attention=True) * tokens,
        1e13,
    )
    found = {u.convention: u.share for u in mfu.utilisations(flops, 8, 0.25, peaks)}
    assert tuple(found) == tuple(mfu.CONVENTIONS)
    assert found["6N"] == pytest.approx(6 * 125_226_240 * 2**14 / 0.25 / (8 * 989.4e12), rel=1e-12)
    assert found["6N"] < found["6N + visible attention"] < found["6N + dense attention"]
    assert found["executed"] == pytest.approx(8e13 / 0.25 / (8 * 989.4e12))  # what one device runs, on eight


def test_fp32_is_held_against_the_fp32_peak_and_without_one_there_is_no_mfu() -> None:
    peaks, _ = mfu.peaks(_mesh("NVIDIA H200", "gpu", 1), "float32")
    assert [peak.flops for peak in peaks] == [66.9e12]
    peaks, note = mfu.peaks(_mesh("TPU v4", "tpu", 1), "float32")
    assert not peaks
    assert "no document says" in note


def test_a_device_that_is_not_in_the_table_has_no_mfu_and_that_is_said() -> None:
    peaks, note = mfu.peaks(_mesh("Riva 128", "gpu", 1), "bfloat16")
    assert not peaks
    assert "'Riva 128'" in note


def test_ceilings_are_of_what_is_multiplied_and_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of two calls that take 1, 4, 2 and 6 s by a pretended clock: the fastest counts, the first never."""
    ticks = iter([tick for took in (1, 4, 2, 6) * 2 for tick in (0.0, float(took))])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    found = ceilings.measure(jax.devices()[0], ceilings.Size(matmul=16, copied=1024, calls=2))
    assert found == ceilings.Ceilings(matmul_flops=2.0 * 16**3, matmul_size=16, copy_bytes=2 * 2.0 * 1024)


# -- what is run ---------------------------------------------------------------------------------------------------


def test_a_cpu_is_given_as_many_sequences_as_it_has_time_for() -> None:
    assert workload.cpu_shard_sequences(preset("gpt3-175b")) == 1
    assert workload.cpu_shard_sequences(preset("gpt3-small")) == 1
    assert workload.cpu_shard_sequences(load_config(["quickstart"])) == 4  # the whole batch
    assert workload.cpu_shard_sequences(load_config(["quickstart"], ["--memory.microbatch", "2"])) == 2


def test_a_batch_is_one_microbatch_a_shard_or_the_one_asked_for(config: Config) -> None:
    mesh = make_mesh(config.parallel)  # eight data shards
    whole = workload.make_workload(config, mesh, keep_batch=False)
    assert (whole.batch.sequences, whole.batch.microbatches, whole.why) == (32, 1, "")
    micro = replace(config, memory={"microbatch": 2})
    one = workload.make_workload(micro, mesh, keep_batch=False)
    assert (one.batch.sequences, one.batch.microbatches, one.tokens) == (16, 1, 256)
    assert one.why == "one microbatch per data shard instead of the configuration's 512 tokens"
    kept = workload.make_workload(micro, mesh, keep_batch=True)
    assert (kept.batch.sequences, kept.batch.microbatches, kept.why) == (32, 2, "")
    assert workload.make_workload(config, mesh, False, largest=1).batch.sequences == 8


def test_a_microbatch_above_the_batch_is_run_and_said(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = make_mesh(config.parallel)  # eight data shards, four sequences of the batch on each
    large = replace(config, memory={"microbatch": 8})
    work = workload.make_workload(large, mesh, keep_batch=False)
    assert (work.batch.sequences, work.batch.microbatches, work.shard_sequences) == (64, 1, 8)
    assert work.why == "memory.microbatch 8 per data shard, above the 4 of the configuration's batch"
    # Cut to what happens to be the whole batch, it is still not what was asked for.
    monkeypatch.setattr(workload, "cpu_shard_sequences", lambda config: 4)
    work = workload.make_workload(large, mesh, keep_batch=False)
    assert work.tokens == 512
    assert work.why.endswith("batch, 4 of its 8 sequences (limited by the CPU's speed)")
    kept = workload.make_workload(large, mesh, keep_batch=True)
    assert (kept.batch.sequences, kept.batch.microbatches) == (32, 1)
    assert kept.why == "one microbatch per data shard: memory.microbatch 8 is above its 4 sequences"


def test_on_an_accelerator_a_batch_is_as_large_as_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate decides, whatever the machine: here a pretended 36 GiB, and one of 100 that is filled by less."""
    config = preset("gpt3-xl")
    device = SimpleNamespace(platform="gpu", device_kind="NVIDIA H200", process_index=0, id=0)
    mesh: Any = SimpleNamespace(
        devices=np.array([device], object), shape={"replica": 1, "data": 1, "tensor": 1}, size=1
    )
    monkeypatch.setattr(workload, "capacity", lambda device: 36 * 2**30)
    work = workload.make_workload(config, mesh, keep_batch=False)
    largest = work.batch.sequences
    assert 1 < largest < 16
    estimated = workload.estimated_bytes
    assert estimated(config, mesh, largest) <= 0.7 * 36 * 2**30 < estimated(config, mesh, 2 * largest)
    assert f"{largest} of its 512 sequences (limited by memory)" in work.why
    assert workload.attention_choices(work) == {"dense": "cudnn", "banded, 256 wide": "cudnn"}
    monkeypatch.setattr(workload, "capacity", lambda device: 100 * 2**30)
    assert workload.make_workload(config, mesh, keep_batch=False).batch.sequences == 16


def test_what_cannot_fit_is_refused_in_one_line() -> None:
    config = replace(preset("gpt3-175b"), parallel={"stage": 0})
    with pytest.raises(UserError, match=r"174,604,259,328 parameters at ZeRO stage 0 need about .* GiB") as refused:
        workload.make_workload(config, make_mesh(config.parallel), keep_batch=False)
    assert "\n" not in str(refused.value)


# -- the step ------------------------------------------------------------------------------------------------------


def test_the_step_that_is_measured_is_the_one_that_train_runs(config: Config) -> None:
    bench = step.StepBench(config, keep_batch=False)
    times = bench.measure(steps=3, warmup=2)
    assert (times.waited.count, times.loop.count) == (3, 3)
    mesh = make_mesh(config.parallel)
    run = make_step(config, mesh)
    state: Any = init_state(config, mesh)
    for _ in range(2 + 3 + 3):
        state, metrics = run(state, bench.rows)
    assert times.loss == float(metrics.loss)
    for mine, theirs in zip(jax.tree.leaves(bench.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert times.flops.model == 6.0 * count_params(config.model) * 512
    assert bench.rows.shape == (32, 17)
    assert (int(bench.rows.min()), int(bench.rows.max())) == (0, 60)  # every token of the vocabulary
    assert times.memory["process, peak resident set"] > bench.program.bytes > 0


def test_what_turns_out_too_large_is_halved_unless_it_was_asked_for(
    config: Config, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    compiled = program.compile_program

    def too_large(function: Any, state: Any, rows: Any) -> Any:
        if rows.shape[0] > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return compiled(function, state, rows)

    monkeypatch.setattr(program, "compile_program", too_large)
    bench = step.StepBench(config, keep_batch=False)
    assert bench.work.batch.sequences == 8
    assert [line for line in said if "do not fit" in line] == [
        "4 sequences on a data shard do not fit; trying 2",
        "2 sequences on a data shard do not fit; trying 1",
    ]
    for asked, keep in ((replace(config, memory={"microbatch": 2}), False), (config, True)):
        with pytest.raises(RunError, match=r"do not fit the devices: RESOURCE_EXHAUSTED.*lower memory\.microbatch"):
            step.StepBench(asked, keep)


def test_on_a_cpu_what_would_not_fit_is_not_started(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "capacity", lambda device: 1000)
    with pytest.raises(UserError, match="the step needs"):
        step.StepBench(config, keep_batch=False)


def test_a_program_that_cannot_be_printed_is_written_out_by_the_compiler() -> None:
    def fails() -> str:
        raise jax.errors.JaxRuntimeError("async-update instruction should have 1 operands")

    found = program.compile_program(jax.jit(lambda x: x @ x + 1), jax.numpy.ones((8, 8)))
    printed = Program(program.text(found)).instructions
    dumped = Program(program.text(dataclasses.replace(found, run=SimpleNamespace(as_text=fails)))).instructions
    assert {name: i.opcode for name, i in printed.items()} == {name: i.opcode for name, i in dumped.items()}


# -- generation ----------------------------------------------------------------------------------------------------


def test_generation_is_as_long_as_asked_for_and_leaves_the_prefill_out(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    times = decode.measure(config.model, 4, 5, rows=3, repeat=2)
    # A tick at the start, one at each row's first, second, ... token: once, however many rows there are.
    assert times.prefill_seconds.median == 1
    assert times.prefill_tokens_per_second == 3 * 4
    assert (times.token_seconds.count, times.token_seconds.median) == (2 * 4, 1)
    assert times.tokens_per_second == 3
    assert times.weight_bytes == 4 * (count_params(config.model) + 3 * 16)  # three rows of padding
    assert times.bound_share == times.weight_bytes / times.read_bytes  # of a token's one tick
    assert decode.measure(config.model, 4, 5, 1, 1, "int8").weight_bytes < 0.6 * times.weight_bytes


def test_generations_vocabulary_never_ends(config: Config) -> None:
    vocabulary: Any = decode._Unending(61, 4)
    assert len(vocabulary.encode("0")) == 4
    assert vocabulary.encode("0") != vocabulary.encode("1")
    assert vocabulary.eot not in range(config.model.n_vocab)
    params = model.init(config.model, jax.random.key(0))
    pieces = list(Generator(params, config.model, vocabulary).stream(["0"], max_tokens=12))
    assert pieces[-1] == Piece(0, 0, "x", 12, "max_tokens")


# -- evaluation ----------------------------------------------------------------------------------------------------


def test_evaluation_counts_its_items_and_the_tokens_that_are_not_padding(config: Config) -> None:
    requests = evaluate.invented("choices", 3, 5, 16, 61)
    assert len(requests) == 12 and len({context for context, _ in requests}) == 3
    contexts = {context for context, _ in requests}
    tokens = sum(map(len, contexts)) + sum(len(choice) - 1 for _, choice in requests)
    mesh = make_mesh(config.parallel)
    times = evaluate.measure(config, mesh, items=3, context_tokens=5, repeat=2)
    assert tuple(times.kinds) == evaluate.KINDS
    found = times.kinds["choices"]
    assert (found.items, found.tokens, found.seconds.count) == (3, tokens, 2)
    assert found.items_per_second == pytest.approx(3 / found.seconds.median)
    assert found.tokens_per_second == pytest.approx(tokens / found.seconds.median)
    assert 0 < found.padding < 1 and found.programs >= 1
    letters = times.kinds["one-token choices"]
    assert letters.tokens == sum(map(len, {c for c, _ in evaluate.invented("one-token choices", 3, 5, 16, 61)}))
    assert times.kinds["texts"].tokens == 3 * 16


# -- checkpoints ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_is_measured_whole_and_removed(config: Config, folder: Path) -> None:
    times = checkpoint.measure(config, str(folder), repeat=2)
    assert times.bytes > 3 * 4 * count_params(config.model)
    assert times.blocking_seconds.count == times.restore_seconds.count == 2
    assert times.blocking_seconds.largest <= times.on_disk_seconds.largest
    assert not list(folder.iterdir())


def test_a_state_that_the_memory_does_not_hold_is_not_made(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 over eight devices: an eighth of three fp32 trees each, and as much in the copy that is written."""
    padded = count_params(config.model) + 3 * 16
    for room, fits in ((2 * 12 * padded / 8 + 100, True), (2 * 12 * padded / 8 - 100, False)):
        monkeypatch.setattr(checkpoint, "capacity", lambda device, room=room: room)
        if fits:
            checkpoint.require_memory(abstract_state(config, mesh := make_mesh(config.parallel)), mesh)
        else:
            with pytest.raises(UserError, match=r"the training state needs .* GiB on a device"):
                checkpoint.measure(config, str(folder), repeat=1)


def test_nothing_is_left_behind_by_an_error_either(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[int] = []
    close = CheckpointStore.close

    def closing(store: Any) -> None:
        close(store)
        closed.append(len(list(folder.iterdir())))

    def full(store: Any) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(CheckpointStore, "wait", full)
    monkeypatch.setattr(CheckpointStore, "close", closing)
    with pytest.raises(RunError, match="the disk is full"):
        checkpoint.measure(config, str(folder), repeat=1)
    assert closed == [1]  # what was being written had come to its end before the folder went
    assert not list(folder.iterdir())


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_loader_is_measured_on_shards_of_the_size_asked_for(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--gigabytes", "0.01", "--n-ctx", "64", "--batch", "8", "--batches", "3", "--repeat", "2"]
    assert main(["loader", *arguments, "--json", "--folder", str(folder)]) == 0
    result = json.loads(capsys.readouterr().out)["loader"]
    assert 0.009e9 < result["bytes"] < 0.012e9
    rate = result["tokens_per_second"]
    assert 0 < rate["smallest"] <= rate["median"] <= rate["largest"]
    assert (result["n_ctx"], result["batch"], rate["count"]) == (64, 8, 2)
    assert not list(folder.iterdir())


def test_everything_is_measured_in_one_call(config_file: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = ["--steps", "1", "--warmup", "1", "--repeat", "1", "--new-tokens", "3", "--gigabytes", "0.01"]
    arguments = ["all", "--config", config_file, "--memory.microbatch", "1", *short, "--folder", str(folder)]
    assert main([*arguments, "--batch", "8", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"machine", "ran", "step", "decode", "loader", "checkpoint"}
    assert result["machine"]["devices"] == 8
    assert {"python", "jax", "gpt3-jax"} <= set(result["machine"]["versions"])
    assert result["ran"]["batch_tokens"] == 8 * 16
    assert result["ran"]["mesh"] == {"replica": 1, "data": 8, "tensor": 1}
    assert result["ran"]["attention"] == {"dense": "plain"}
    assert {u["convention"] for u in result["step"]["utilisations"]} == set(mfu.CONVENTIONS)
    assert "measured now" in result["step"]["utilisations"][0]["peak"]  # a CPU has no data sheet
    assert result["loader"]["n_ctx"] == 16
    assert (result["decode"]["prompt_tokens"], result["decode"]["new_tokens"]) == (8, 3)
    assert not list(folder.iterdir())


def test_the_text_says_what_ran(config_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", config_file, "--steps", "1", "--warmup", "1", "--parallel.stage=2", "--profile"]
    arguments += ["--model.n_layers", "2", "--model.attention_pattern", "[dense, banded]"]
    assert main([*arguments, "--train.batch_tokens", "256", "--memory.microbatch", "1"]) == 0
    text = capsys.readouterr().out
    config = load_config([config_file], arguments[-4:]).model
    for part in (
        "8 × cpu",
        f"{config_file}: {count(count_params(config))} parameters (2 layers × 16, 2 heads, context 16, vocabulary 61), "
        "float32",
        "mesh replica 1 × data 8 × tensor 1, ZeRO stage 2, remat none",
        "attention: dense: plain, banded, 4 wide: plain",
        "batch 256 tokens: 16 sequences in 2 microbatches\n",
        "6N + visible attention",
        "no MFU against a data sheet: the peak rate of this device, 'cpu', is not known",
        "Where a step's time goes: 3 traced steps",
    ):
        assert part in text


def test_of_several_what_cannot_be_measured_is_said_and_left_out(
    config_file: str, folder: Path, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    arguments = ["all", "--config", config_file, "--steps", "1", "--warmup", "1", "--repeat", "1", "--batch", "8"]
    code = main([*arguments, "--gigabytes", "1e9", "--new-tokens", "99", "--json", "--folder", str(folder)])
    assert code == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "--new-tokens 99: their sum may be at most 16" in result["decode"]["error"]
    assert "need 1,000,000,000.00 GB" in result["loader"]["error"]
    assert {"loop", "waited"} <= set(result["step"])
    assert result["checkpoint"]["bytes"]
    assert sum(line.startswith("gpt3-jax: error: ") for line in said) == 2


@pytest.mark.slow  # four processes
def test_a_start_is_measured_by_phase(tmp_path: Path) -> None:
    """A second start finds the programs of the first; no phase is missing, and the temporary folders are removed."""
    config = replace(preset("quickstart"), model={"n_layers": 2}, train={"batch_tokens": 512})
    file = tmp_path / "tiny.yaml"
    file.write_text(to_yaml(config))
    times = startup.measure(config, ["--config", str(file)], str(tmp_path), 1)
    assert tuple(times.cold) == tuple(times.warm) == (*start_up.PHASES, "all")
    assert times.warm["compiling"].median < times.cold["compiling"].median
    assert list(tmp_path.iterdir()) == [file]
    (tmp_path / "bad.yaml").write_text("data: {tokenizer: nowhere}")
    with pytest.raises(RunError, match=r"ended with exit code 2 before its first step: gpt3-jax: error: .*nowhere"):
        startup.measure(config, ["--config", str(tmp_path / "bad.yaml")], str(tmp_path), 1)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["loader", "--batch", "0"], "--batch is 0; expected more than 0"),
        (["loader", "nowhere"], "nowhere does not exist"),
        (["loader", "--gigabytes", "1e9"], "random token shards need"),
        (
            ["gpt3-small"],
            "bench cannot measure 'gpt3-small'; expected step, decode, loader, checkpoint, evaluate, startup, ceilings "
            "or all",
        ),
        (["step", "tokens/web"], "unexpected argument 'tokens/web'"),
        (["decode", "--profile"], "--profile is an option of bench step"),
        (["loader", "--steps", "5"], "--steps is an option of bench step"),
        (["--gigabytes", "2"], "--gigabytes is an option of bench loader"),
        (["loader", "--gigabytes", "nan"], "--gigabytes is nan; expected more than 0"),
        (["loader", "--gigabytes", "0.01", "--batch", "1000000000"], "GiB of memory are left; lower --batch"),
        (["decode", "--rows", "17"], "--rows is 17; expected 16 at most"),
        (["evaluate", "--context-tokens", "250"], "at most 245 fit model.n_ctx, 256"),
        (["decode", "--items", "3"], "--items is an option of bench evaluate"),
        (["checkpoint", "--folder", "nowhere"], "--folder 'nowhere' is not a folder"),
        (["--step", "3"], "unknown option --step; the nearest is --steps"),
        (["--config", "nothing"], "configuration file 'nothing' does not exist"),
        (["--train.batch_token", "1"], "unknown option --train.batch_token; the nearest is --train.batch_tokens"),
        (["--parallel.data", "3"], "mesh replica 1 × data 3 × tensor 1 = 3 devices, but 8 are at hand"),
        (["--parallel.data", "16"], "= 16 devices, but 8 are at hand"),
        (["--train.batch_tokens", "256"], "is 1 sequences of 256 tokens, which 8 data shards"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError) as refused:
        main(arguments)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_sources_and_options_may_stand_in_any_order(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.bin"
    np.arange(5000, dtype=np.uint16).tofile(tokens)
    options = ["--n-ctx", "16", "--batch", "8", "--batches", "2", "--repeat", "1", "--json"]
    assert main(["loader", *options[:4], str(tokens), *options[4:]]) == 0
    result = json.loads(capsys.readouterr().out)["loader"]
    assert (result["sources"], result["bytes"]) == ([str(tokens)], 10_000)
