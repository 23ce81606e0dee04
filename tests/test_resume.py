"""Going on from a checkpoint: after a kill, on another mesh, with another configuration, past a damaged checkpoint."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml
from tiny_run import finish, losses, metrics, saved, start, tiny, write_data, write_tokens

from gpt3_jax.config import Config, replace
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.train import loop
from gpt3_jax.train.checkpoint.reader import CheckpointReader

EIGHT = {"data": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def eight(data: Path, run_dir: Path, /, **sections: Any) -> Config:
    """128 tokens a batch on eight devices, eight batches."""
    sections = {"parallel": EIGHT, **sections}
    return tiny(data, run_dir, **{**sections, "train": {"batch_tokens": 128, **sections.get("train", {})}})


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run that was trained to its end; tests work on copies."""
    config = eight(data, tmp_path_factory.mktemp("finished") / "run")
    loop.run(config)
    return config


def copy(config: Config, run_dir: Path) -> Config:
    shutil.copytree(config.train.run_dir, run_dir)
    return replace(config, train={"run_dir": str(run_dir)})


def same_state(a: Config, b: Config) -> None:
    one, other = saved(a), saved(b)
    jax.tree.map(np.testing.assert_array_equal, one, other)  # bit for bit


def test_a_resumed_run_keeps_its_loop_over_depth(tmp_path: Path) -> None:
    """What `memory.unroll` 0 stands for is decided once, when a run begins."""
    two = replace(eight(write_data(tmp_path / "data"), tmp_path / "run", train={"tokens": 128}), model={"n_layers": 2})
    loop.run(replace(two, memory={"unroll": 2}))
    loop.run(replace(two, memory={"unroll": 0}, train={"tokens": 256}))
    assert saved_unroll(tmp_path / "run") == 2
    loop.run(replace(two, memory={"unroll": 0}, train={"run_dir": str(tmp_path / "other")}))
    assert saved_unroll(tmp_path / "other") == 1


def saved_unroll(run_dir: Path) -> int:
    found: int = yaml.safe_load((run_dir / "config.yaml").read_text())["memory"]["unroll"]
    return found


# ---------------------------------------------------------------------------------------------------------------
# SIGKILL
# ---------------------------------------------------------------------------------------------------------------


def ramped(data: Path, run_dir: Path, tokens: int) -> Config:
    """One device; batches of 2, 3 and 4 sequences; a checkpoint every other batch, an evaluation now and then."""
    return tiny(
        data,
        run_dir,
        train={
            "tokens": tokens, "batch_tokens": 64, "ramp_start_tokens": 32, "ramp_tokens": tokens // 2, "ramp_sizes": 3,
            "eval_tokens": tokens // 4,
        },
        checkpoint={"every_tokens": 96},
    )  # fmt: skip


def kill_at(config: Config, file: Path, tokens: int, delay: float, *, in_a_save: bool) -> None:
    """Starts the run and kills it soon after its metrics reach `tokens`, and, if so, while a save is under way."""
    process = start(config, file)
    run_dir = Path(config.train.run_dir)
    deadline = time.monotonic() + 300
    try:
        while process.poll() is None and time.monotonic() < deadline:
            reached = (run_dir / "metrics.jsonl").exists() and max([0, *losses_so_far(run_dir)]) >= tokens
            saving = any((run_dir / "checkpoints").glob("*.orbax-checkpoint-tmp"))
            if reached and (saving or not in_a_save):
                break
            time.sleep(0.001)
        time.sleep(delay)
        assert process.poll() is None, finish(process)
    finally:
        process.kill()
        process.communicate()


def losses_so_far(run_dir: Path) -> list[int]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    return [json.loads(line)["tokens"] for line in lines if line.endswith("\n")]


def kill_and_compare(data: Path, folder: Path, kills: int, tokens: int) -> None:
    whole, killed = ramped(data, folder / "whole", tokens), ramped(data, folder / "killed", tokens)
    code, _, err = finish(start(whole, folder / "whole.yaml"))
    assert code == 0, err
    rng = random.Random(0)
    points = sorted(rng.uniform(0, 0.9 * tokens) for _ in range(kills))
    for n, point in enumerate(points):
        # Every third in the middle of a save; the last point leaves room for one.
        kill_at(killed, folder / "killed.yaml", int(point), rng.uniform(0, 0.05), in_a_save=n % 3 == 1)
    code, _, err = finish(start(killed, folder / "killed.yaml"))
    assert code == 0, err
    assert "resuming from" in err
    assert sorted({line["batch_tokens"] for line in metrics(folder / "whole") if line["kind"] == "train"}) == [
        32,
        48,
        64,
    ]
    assert metrics(folder / "killed") == metrics(folder / "whole")
    same_state(whole, killed)


def test_two_kills_leave_no_trace(tmp_path: Path, data: Path) -> None:
    """A run killed with SIGKILL at two moments ends with the losses and the parameters, bit for bit, of one that was
    not: across its ramp, one kill while a checkpoint was being written."""
    kill_and_compare(data, tmp_path, kills=2, tokens=1536)


@pytest.mark.slow
def test_ten_kills_leave_no_trace(tmp_path: Path, data: Path) -> None:
    kill_and_compare(data, tmp_path, kills=10, tokens=6144)


# ---------------------------------------------------------------------------------------------------------------
# Another mesh, another stage
# ---------------------------------------------------------------------------------------------------------------


def test_each_resume_on_another_mesh_and_stage(tmp_path: Path, data: Path) -> None:
    """Three meshes in turn give the losses and the parameters of one to rounding, and the ramp goes on as the first one
    laid it out: 8 and 16 sequences, where 4 data shards would by themselves begin with 4."""
    train = {"tokens": 2048, "batch_tokens": 256, "ramp_start_tokens": 16, "ramp_tokens": 1024, "ramp_sizes": 3}
    whole = tiny(data, tmp_path / "whole", train=train, parallel=EIGHT, data={"eval": []})
    loop.run(whole)
    turns = [
        (512, {"data": 8, "stage": 1}),
        (1280, {"data": 4, "tensor": 2, "stage": 3}),
        (2048, {"replica": 2, "data": 2, "tensor": 2, "stage": 2}),
    ]
    for tokens, parallel in turns:
        moved = {**train, "tokens": tokens}
        config = tiny(data, tmp_path / "moved", train=moved, parallel=parallel, data={"eval": []})
        loop.run(config)
    one, other = losses(tmp_path / "whole"), losses(tmp_path / "moved")
    assert list(one) == list(other)
    assert {line["batch_tokens"] for line in metrics(tmp_path / "moved")} == {128, 256}
    np.testing.assert_allclose(list(other.values()), list(one.values()), rtol=2e-5)
    a, b = saved(whole), saved(config)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=2e-3, atol=2e-4), a.params, b.params)
    assert int(a.sequences) == int(b.sequences)


# ---------------------------------------------------------------------------------------------------------------
# Another configuration
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "shown"),
    [
        ({"optimizer": {"peak_lr": 2e-2}}, "optimizer.peak_lr: 0.01 -> 0.02"),
        ({"train": {"batch_tokens": 256}}, "train.batch_tokens: 128 -> 256"),
        ({"train": {"seed": 1}}, "train.seed: 0 -> 1"),
        ({"data": {"seed": 7}}, "data.seed: 0 -> 7; data.train: its tokens, weights or seed are not"),
        ({"model": {"norm_eps": 1e-6}}, "model.norm_eps: 1e-05 -> 1e-06"),
        (
            {"model": {"d_model": 32}, "optimizer": {"beta2": 0.9}},
            "model.d_model: 16 -> 32; optimizer.beta2: 0.95 -> 0.9",
        ),
    ],
)
def test_a_changed_configuration_is_refused_with_the_difference(
    tmp_path: Path, finished: Config, changed: dict[str, Any], shown: str
) -> None:
    config = replace(copy(finished, tmp_path / "run"), **changed)
    before = sorted(path.name for path in (tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="another configuration") as caught:
        loop.run(replace(config, train={"tokens": 2048}))
    assert shown in str(caught.value) and "--checkpoint.on_change accept" in str(caught.value)
    assert sorted(path.name for path in (tmp_path / "run").rglob("*")) == before


def test_an_accepted_change_takes_effect(tmp_path: Path, finished: Config, said: list[str]) -> None:
    """A batch of twice the size: not the recorded sizes again."""
    config = copy(finished, tmp_path / "run")
    config = replace(config, train={"tokens": 1536, "batch_tokens": 256}, checkpoint={"on_change": "accept"})
    loop.run(config)
    assert any("continuing with a changed configuration: train.batch_tokens: 128 -> 256" in line for line in said)
    assert list(losses(tmp_path / "run"))[-3:] == [1024, 1280, 1536]


def test_other_shapes_are_refused_even_if_accepted(tmp_path: Path, finished: Config) -> None:
    config = copy(finished, tmp_path / "run")
    config = replace(config, model={"d_model": 32}, train={"tokens": 2048}, checkpoint={"on_change": "accept"})
    with pytest.raises(UserError, match=r"in checkpoint .* but .* in this configuration"):
        loop.run(config)


def test_harmless_settings_and_moved_data_are_accepted_silently(
    tmp_path: Path, data: Path, finished: Config, said: list[str]
) -> None:
    config = copy(finished, tmp_path / "run")
    shutil.copytree(data, tmp_path / "moved")
    config = replace(
        config,
        data={
            "train": tuple(replace_path(source, tmp_path / "moved" / "train") for source in config.data.train),
            "eval": (),
            "prefetch": 3,
        },
        train={
            "tokens": 1152,
            "log_tokens": 1,
            "eval_tokens": 10,
            "nonfinite": "skip",
        },
        memory={"microbatch": 1, "remat": "full", "loss_chunk": 8},
        checkpoint={"every_tokens": 10**6, "keep_last": 1, "keep_every_tokens": 512},
    )
    loop.run(config)
    assert any(line.startswith("resuming from") for line in said)
    assert not any("changed" in line for line in said)
    assert list(losses(tmp_path / "run"))[-1] == 1152


def replace_path(source: Any, path: Path) -> Any:
    return type(source)(str(path), source.weight, source.dtype)


def test_other_tokens_in_the_same_place_are_refused(tmp_path: Path, data: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    config = eight(tmp_path / "data", tmp_path / "run", train={"tokens": 128}, data={"eval": []})
    loop.run(config)
    shutil.rmtree(tmp_path / "data" / "train")
    write_tokens(tmp_path / "data" / "train", 4000, seed=9)
    with pytest.raises(UserError, match=r"data.train: its tokens, weights or seed"):
        loop.run(replace(config, train={"tokens": 256}))


def test_a_finished_run_trains_nothing_and_writes_nothing_twice(tmp_path: Path, finished: Config) -> None:
    config = copy(finished, tmp_path / "run")
    before = metrics(tmp_path / "run")
    result = loop.run(config)
    assert result.tokens == 1024 and result.evaluation is not None
    assert result.evaluation.loss == before[-1]["loss"]
    assert metrics(tmp_path / "run") == before
    same_state(config, finished)


# ---------------------------------------------------------------------------------------------------------------
# The record, and damage
# ---------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_records_the_run(finished: Config) -> None:
    found = CheckpointReader(Path(finished.train.run_dir) / "checkpoints").newest_record()
    assert found is not None
    tokens, record = found
    assert tokens == 1024
    assert record["config"]["optimizer"]["peak_lr"] == 1e-2
    assert record["batch_sizes"] == [[0, 8]]
    assert record["data"]["tokenizer"] == ByteTokenizer().fingerprint
    rows = {row["quantity"]: row for row in record["recipe"]["quantities"]}
    assert rows["optimizer.warmup_tokens"]["deviates"] and not rows["optimizer.beta2"]["deviates"]
    assert {"python", "jax", "jaxlib"} <= set(record["versions"])
    assert yaml.safe_load((Path(finished.train.run_dir) / "config.yaml").read_text()) == record["config"]


def damage(checkpoint: Path) -> None:
    largest = max((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, finished: Config, said: list[str]
) -> None:
    config = copy(finished, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "tokens-1024")
    loop.run(config)
    assert any("tokens-1024 is damaged" in line for line in said)
    assert any("resuming from" in line and "at 768 tokens" in line for line in said)
    assert metrics(tmp_path / "run") == metrics(Path(finished.train.run_dir))
    same_state(config, finished)


def test_nothing_but_damage_is_refused_never_begun_anew(tmp_path: Path, finished: Config) -> None:
    config = copy(finished, tmp_path / "run")
    for checkpoint in (tmp_path / "run" / "checkpoints").iterdir():
        damage(checkpoint)
    before = metrics(tmp_path / "run")
    with pytest.raises(RunError, match=r"none of the checkpoints .* can be read"):
        loop.run(config)
    assert metrics(tmp_path / "run") == before
