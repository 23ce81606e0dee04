"""`train --verify-recipe`: the paper's tables, written down here a second time, against what it prints and marks."""

from __future__ import annotations

import json
import math

import pytest

from gpt3_jax.cli.main import main
from gpt3_jax.config import Config, ParallelConfig, SourceConfig, load_config, preset, replace
from gpt3_jax.errors import UserError
from gpt3_jax.train import recipe
from gpt3_jax.train.recipe import Row, Size
from gpt3_jax.train.schedule import batch_schedule

# Table 2.1 with the two misprints mended: layers, width, heads, head size, learning rate, tokens of a batch in whole
# sequences; Table D.1's parameters in millions.
TABLE = {
    "gpt3-small": (12, 768, 12, 64, 6.0e-4, 524_288, 125),
    "gpt3-medium": (24, 1024, 16, 64, 3.0e-4, 524_288, 356),
    "gpt3-large": (24, 1536, 16, 96, 2.5e-4, 524_288, 760),
    "gpt3-xl": (24, 2048, 16, 128, 2.0e-4, 1_048_576, 1_320),
    "gpt3-2.7b": (32, 2560, 32, 80, 1.6e-4, 1_048_576, 2_650),
    "gpt3-6.7b": (32, 4096, 32, 128, 1.2e-4, 2_097_152, 6_660),
    "gpt3-13b": (40, 5120, 40, 128, 1.0e-4, 2_097_152, 12_850),
    "gpt3-175b": (96, 12288, 96, 128, 0.6e-4, 3_145_728, 174_600),
}
ALL_SIZES = {
    "model.n_ctx": 2048,
    "model.n_vocab": 50257,
    "optimizer.warmup_tokens": 375_000_000,
    "optimizer.decay_tokens": 260_000_000_000,
    "optimizer.final_lr_fraction": 0.1,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.95,
    "optimizer.eps": 1e-8,
    "optimizer.weight_decay": 0.1,
    "optimizer.clip_norm": 1.0,
    "train.tokens": 300_000_000_000,
    "train.ramp_start_tokens": 32_768,
    "data.tokenizer": "r50k_base",
}


UNPUBLISHED = {
    "model.band_width",
    "model.residual_init",
    "optimizer.decay_after_warmup",
    "optimizer.weight_decay_on",
    "train.ramp_sizes",
    "dropout",
}
RAMP = {"train.ramp_start_tokens", "updates", "updates.warmup"}


def checked(config: Config, shards: int = 1) -> tuple[Size, dict[str, Row]]:
    size, rows = recipe.check(config, batch_schedule(config, shards))
    return size, {row.quantity: row for row in rows}


def marked(config: Config, shards: int = 1) -> set[str]:
    return {quantity for quantity, row in checked(config, shards)[1].items() if row.deviates}


@pytest.mark.parametrize("name", TABLE)
def test_a_shipped_size_is_the_papers(name: str) -> None:
    size, rows = checked(preset(name))
    here = {quantity: row.here for quantity, row in rows.items()}
    assert size == Size(name, exact=True) and marked(preset(name)) == set()
    layers, width, heads, head, rate, batch, millions = TABLE[name]
    expected = {
        **ALL_SIZES,
        "model.n_layers": layers,
        "model.d_model": width,
        "model.n_heads": heads,
        "model.d_head": head,
        "model.d_ff": 4 * width,
        "optimizer.peak_lr": rate,
        "train.batch_tokens": batch,
    }
    assert {quantity: here[quantity] for quantity in expected} == expected
    assert here["parameters"] == pytest.approx(millions * 1e6, rel=0.006)
    assert 4_000_000_000 <= here["train.ramp_tokens"] <= 12_000_000_000
    assert {quantity for quantity, row in rows.items() if not row.published} == UNPUBLISHED
    assert here["dropout"] == "none"
    printed = {quantity: (row.paper, row.mark) for quantity, row in rows.items() if row.mark}
    assert printed == PRINTED.get(name, {})


PRINTED = {
    "gpt3-xl": {"model.n_heads": (24, "corrected")},
    "gpt3-13b": {"model.d_model": (5140, "corrected")},
    "gpt3-175b": {"train.batch_tokens": (3_200_000, "rounded")},
}
"""What Table 2.1 prints where the size is not that."""

SHAPE = {"model.n_layers", "parameters"}
DEVIATIONS: list[tuple[str, dict[str, dict[str, object]], set[str]]] = [
    ("gpt3-small", {"optimizer": {"beta2": 0.999}}, {"optimizer.beta2"}),
    ("gpt3-small", {"optimizer": {"peak_lr": 5e-4, "clip_norm": 0.0}}, {"optimizer.peak_lr", "optimizer.clip_norm"}),
    ("gpt3-small", {"train": {"batch_tokens": 1_048_576}}, {"train.batch_tokens"}),
    ("gpt3-small", {"train": {"tokens": 10**11}}, {"train.tokens"}),
    ("gpt3-small", {"train": {"ramp_tokens": 0}}, {"train.ramp_tokens"}),
    ("gpt3-small", {"train": {"ramp_start_tokens": 65_536}}, {"train.ramp_start_tokens"}),
    ("gpt3-small", {"model": {"n_heads": 16}}, {"model.n_heads", "model.d_head"}),
    # Attention: the paper's layers alternate; the first one and the width of the band are not published.
    ("gpt3-small", {"model": {"attention_pattern": ("banded", "dense")}}, set()),
    ("gpt3-small", {"model": {"attention_pattern": ("dense", "banded") * 2}}, set()),
    ("gpt3-small", {"model": {"attention_pattern": ("dense",)}}, {"model.attention_pattern"}),
    ("gpt3-small", {"model": {"attention_pattern": ("banded",)}}, {"model.attention_pattern"}),
    ("gpt3-small", {"model": {"attention_pattern": ("dense", "banded", "dense")}}, {"model.attention_pattern"}),
    ("gpt3-small", {"model": {"attention_pattern": ("dense", "dense", "banded")}}, {"model.attention_pattern"}),
    ("gpt3-small", {"model": {"band_width": 2047}}, set()),
    ("gpt3-small", {"model": {"band_width": 2048}}, {"model.band_width"}),  # it is dense
    ("gpt3-small", {"model": {"band_width": 4096}}, {"model.band_width"}),
    # Nobody published which of these.
    ("gpt3-small", {"model": {"residual_init": "L"}, "optimizer": {"decay_after_warmup": True}}, set()),
    ("gpt3-small", {"optimizer": {"weight_decay_on": "all"}}, set()),
    ("gpt3-small", {"model": {"residual_init": "none"}}, {"model.residual_init"}),
    # How the ramp climbs is not published either, but it is a line.
    ("gpt3-small", {"train": {"ramp_sizes": 32}}, set()),
    ("gpt3-small", {"train": {"ramp_sizes": 2}}, {"train.ramp_sizes"}),
    ("gpt3-175b", {"train": {"ramp_sizes": 4}}, {"train.ramp_sizes"}),
    # A shape that is not the paper's is held against the nearest.
    ("gpt3-small", {"model": {"n_layers": 14}}, SHAPE),
    ("gpt3-xl", {"model": {"n_layers": 20}, "optimizer": {"beta1": 0.95}}, SHAPE | {"optimizer.beta1"}),
    (
        "gpt3-13b",
        {"model": {"d_model": 5200}},
        {"model.d_model", "model.d_head", "model.d_ff", "parameters"},
    ),
    # Where and how it is computed is not the recipe.
    (
        "gpt3-small",
        {"parallel": {"stage": 3}, "memory": {"remat": "none", "loss_chunk": 7}, "data": {"seed": 3}},
        set(),
    ),
]


def test_the_ramps_bounds_are_the_papers() -> None:
    """4 to 12 billion tokens (appendix B), and not one token more or less."""
    lengths = {3_999_999_999: True, 4_000_000_000: False, 12_000_000_000: False, 12_000_000_001: True}
    for tokens, deviates in lengths.items():
        config = replace(preset("gpt3-small"), train={"ramp_tokens": tokens})
        assert ("train.ramp_tokens" in marked(config)) == deviates, tokens


@pytest.mark.parametrize(
    ("name", "changed", "quantities"),
    DEVIATIONS,
    ids=lambda value: str(sorted(value) if isinstance(value, set) else value)[:60],
)
def test_deviations_are_found(name: str, changed: dict[str, dict[str, object]], quantities: set[str]) -> None:
    """But for the count of updates, which is the ramp's own and has a test of its own."""
    assert marked(replace(preset(name), **changed)) - {"updates", "updates.warmup"} == quantities


@pytest.mark.parametrize(
    ("files", "quantities", "start"),
    [
        (["gpt3-small", "mesh-h100-8"], set(), 32_768),
        (["gpt3-6.7b", "mesh-h100-8"], set(), 32_768),
        (["gpt3-xl", "mesh-v5e-256"], RAMP, 524_288),
        (["gpt3-175b", "mesh-v5p-512"], RAMP, 1_048_576),
        (["gpt3-13b", "mesh-v4-32"], RAMP, 65_536),
    ],
)
def test_what_the_mesh_does_to_the_ramp_is_seen(files: list[str], quantities: set[str], start: int) -> None:
    config = load_config(files)
    shards = recipe.data_shards(config.parallel, None)
    assert marked(config, shards) - {"updates.warmup"} <= quantities
    assert ("train.ramp_start_tokens" in marked(config, shards)) == bool(quantities)
    assert checked(config, shards)[1]["train.ramp_start_tokens"].here == start
    alone = replace(config, memory={"microbatch": 1})
    assert checked(alone)[1]["train.ramp_start_tokens"].here == 32_768  # one device divides everything


def test_updates_are_those_of_the_schedule_beside_the_line() -> None:
    """175B in 300B tokens, by the integral of one over the paper's line: 12e9 tokens of ramp, then whole batches."""
    config = preset("gpt3-175b")
    start, full, ramp = 32_768, 3_145_728, 12e9
    line = ramp / (full - start) * math.log(full / start) + (300e9 - ramp) / full
    _, rows = checked(config)
    assert rows["updates"].paper == round(line) == 109_148
    assert rows["updates"].here == sum(1 for _ in batch_schedule(config, 1).batches(0))
    assert not rows["updates"].deviates and not rows["updates.warmup"].deviates
    _, rows = checked(config, 64)
    assert rows["updates"].here == sum(1 for _ in batch_schedule(config, 64).batches(0)) < 0.99 * line
    assert rows["updates"].deviates and rows["updates.warmup"].deviates


@pytest.mark.parametrize(
    ("parallel", "devices", "shards"),
    [({}, 8, 8), ({"tensor": 2}, 8, 4), ({"replica": 2, "data": 2, "tensor": 2}, None, 4), ({"data": 4}, 4, 4)],
)
def test_data_shards(parallel: dict[str, int], devices: int | None, shards: int) -> None:
    assert recipe.data_shards(ParallelConfig(**parallel), devices) == shards  # type: ignore[arg-type]


@pytest.mark.parametrize(("parallel", "devices"), [({"tensor": 3}, 8), ({"data": 4}, 8), ({"tensor": 16}, 8)])
def test_devices_that_the_mesh_does_not_have(parallel: dict[str, int], devices: int) -> None:
    with pytest.raises(UserError, match=f"does not make {devices} devices"):
        recipe.data_shards(ParallelConfig(**parallel), devices)  # type: ignore[arg-type]


def test_the_command_prints_every_quantity_and_marks_deviations(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "gpt3-small", "--optimizer.beta2", "0.999", "--verify-recipe"]
    assert main(["train", *arguments, "--devices", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The paper's gpt3-small beside what runs on one data shard: 1 deviation"
    found = [line for line in lines if "DEVIATES" in line]
    assert len(found) == 1 and found[0].split()[:4] == ["optimizer.beta2", "0.95", "0.999", "DEVIATES"]
    shown = {line.split()[0] for line in lines[3:]}
    assert shown == set(checked(load_config(["gpt3-small"]))[1])


@pytest.mark.parametrize(
    ("options", "head"),
    [
        (["--config", "gpt3-xl", "--config", "mesh-v5e-256"], "on 256 data shards"),
        (["--config", "gpt3-xl"], "on 8 data shards"),  # those attached here
        (["--config", "gpt3-xl", "--devices", "64", "--parallel.tensor=4"], "on 16 data shards"),
        (["--config", "gpt3-small", "--model.n_layers", "14"], "gpt3-small, the nearest in depth and width, beside"),
    ],
)
def test_the_command_knows_the_mesh(options: list[str], head: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options, "--verify-recipe"]) == 0
    assert head in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--verify-recipe", "--devices", "many"], "--devices is 'many'"),
        (["--verify-recipe", "--devices=0"], "--devices is '0'"),
        (["--devices", "8"], "--devices is for --verify-recipe"),
        (["--verify-recipe", "--config", "gpt3-xl", "--devices", "7"], "7 data shards"),
        (["--verify-recipe", "--config", "gpt3-xl", "--config", "mesh-v5e-256", "--devices", "8"], "does not make 8"),
    ],
)
def test_devices_are_checked(options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *options]) == 2
    assert words in capsys.readouterr().err


def test_the_record_of_a_checkpoint_says_the_same_of_what_runs() -> None:
    config = replace(load_config(["gpt3-xl", "mesh-v5e-256"]), optimizer={"weight_decay": 0.0})
    schedule = batch_schedule(config, 256)
    record = json.loads(json.dumps(recipe.record(config, schedule)))
    assert record["size"] == record["nearest"] == "gpt3-xl"
    found = {row["quantity"]: row for row in record["quantities"]}
    assert {quantity for quantity, row in found.items() if row["deviates"]} == RAMP | {"optimizer.weight_decay"}
    assert found["train.ramp_start_tokens"]["here"] == 524_288
    assert list(found) == [row.quantity for row in recipe.check(config, schedule)[1]]
    other = recipe.record(replace(config, model={"n_layers": 22}), schedule)
    assert (other["size"], other["nearest"]) == (None, "gpt3-xl")


MIXTURE = (59.4, 21.8, 7.9, 7.9, 3.0)


@pytest.mark.parametrize(
    ("sources", "deviates"),
    [
        # Five sources whose paths say nothing are taken in the order of Table 2.2.
        ({"a": 60, "b": 22, "c": 8, "d": 8, "e": 3}, False),
        ({"a": 0.60, "b": 0.22, "c": 0.08, "d": 0.08, "e": 0.03}, False),
        ({"a": 22, "b": 60, "c": 8, "d": 8, "e": 3}, True),
        ({"a": 60, "b": 22, "c": 8, "d": 8, "e": 2}, True),
        # Paths that name the datasets, in any order and in parts; and with weights swapped.
        ({"t/wikipedia": 3, "t/books1": 8, "t/webtext2": 22, "t/books-2": 8, "t/common_crawl": 60}, False),
        ({"t/cc-2016": 30, "t/cc-2019": 30, "t/WebText2": 22, "t/Books1": 8, "t/Books2": 8, "t/wiki_en": 3}, False),
        ({"t/cc": 22, "t/webtext2": 60, "t/books1": 8, "t/books2": 8, "t/wiki": 3}, True),
        ({"t/cc": 60, "t/webtext2": 22, "t/books1": 8, "t/wiki": 8}, True),
        # Another corpus.
        ({"t/web": 1}, True),
        ({"a": 6, "b": 4}, True),
        ({"a": 30, "b": 30, "c": 22, "d": 8, "e": 8, "f": 3}, True),
        ({}, False),  # nothing is said yet
    ],
    ids=str,
)
def test_the_mixture_is_compared_by_dataset(sources: dict[str, float], deviates: bool) -> None:
    made = tuple(SourceConfig(path, weight) for path, weight in sources.items())
    _, rows = checked(replace(preset("gpt3-small"), data={"train": made}))
    row = rows["data.mixture"]
    assert row.deviates is deviates and row.paper == MIXTURE
    assert (row.here == MIXTURE) == (bool(sources) and not deviates)
