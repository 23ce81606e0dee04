"""`train --verify-recipe`: the paper's tables, written down here a second time, against what it prints and marks."""

from __future__ import annotations

import json

import pytest

from gpt3_jax.cli.main import main
from gpt3_jax.config import SourceConfig, load_config, preset, replace
from gpt3_jax.train import recipe

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


@pytest.mark.parametrize("name", TABLE)
def test_a_shipped_size_is_the_papers(name: str) -> None:
    size, rows = recipe.check(preset(name))
    here = {row.quantity: row.here for row in rows}
    assert size == name and not any(row.deviates for row in rows)
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
    unpublished = {row.quantity for row in rows if not row.published}
    assert unpublished == {
        "model.band_width",
        "model.residual_init",
        "optimizer.decay_after_warmup",
        "train.ramp_stages",
        "parameters.decayed",
    }
    assert here["parameters.decayed"] == ("embedding", "kernel")


@pytest.mark.parametrize(
    ("changed", "quantities"),
    [
        ({"optimizer": {"beta2": 0.999}}, {"optimizer.beta2"}),
        ({"optimizer": {"peak_lr": 5e-4, "clip_norm": 0.0}}, {"optimizer.peak_lr", "optimizer.clip_norm"}),
        ({"train": {"batch_tokens": 1_048_576}}, {"train.batch_tokens"}),
        ({"train": {"ramp_tokens": 0}}, {"train.ramp_tokens"}),
        ({"train": {"ramp_tokens": 12_000_000_000}}, set()),  # within what the paper says
        ({"model": {"n_heads": 16}}, {"model.n_heads", "model.d_head"}),
        ({"model": {"attention_pattern": ("dense",)}}, {"model.attention_pattern"}),
        ({"model": {"band_width": 128}, "optimizer": {"decay_after_warmup": True}}, set()),  # nobody published them
        ({"parallel": {"stage": 3}}, set()),
    ],
)
def test_deviations_are_found(changed: dict[str, dict[str, object]], quantities: set[str]) -> None:
    _, rows = recipe.check(replace(preset("gpt3-small"), **changed))
    assert {row.quantity for row in rows if row.deviates} == quantities


def test_the_command_prints_every_quantity_and_marks_deviations(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", "gpt3-small", "--optimizer.beta2", "0.999", "--verify-recipe"]
    assert main(["train", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The paper's gpt3-small, beside this configuration: 1 deviation"
    marked = [line for line in lines if "DEVIATES" in line]
    assert len(marked) == 1 and marked[0].split()[:4] == ["optimizer.beta2", "0.95", "0.999", "DEVIATES"]
    shown = {line.split()[0] for line in lines[3:]}
    assert shown == {row.quantity for row in recipe.check(load_config(["gpt3-small"]))[1]}


def test_a_shape_that_is_not_the_papers_is_held_against_what_all_sizes_share() -> None:
    size, rows = recipe.check(preset("quickstart"))
    by_name = {row.quantity: row for row in rows}
    assert size is None
    assert by_name["model.n_layers"].paper is None and not by_name["model.n_layers"].deviates
    assert by_name["optimizer.warmup_tokens"].deviates and not by_name["optimizer.beta2"].deviates


def test_the_record_of_a_checkpoint_says_the_same() -> None:
    config = replace(preset("gpt3-xl"), optimizer={"weight_decay": 0.0})
    record = json.loads(json.dumps(recipe.record(config)))
    assert record["size"] == "gpt3-xl"
    marked = [row["quantity"] for row in record["quantities"] if row["deviates"]]
    assert marked == ["optimizer.weight_decay"]
    _, rows = recipe.check(config)
    assert [row["quantity"] for row in record["quantities"]] == [row.quantity for row in rows]


@pytest.mark.parametrize(
    ("weights", "deviates"),
    [
        ([60, 22, 8, 8, 3], False),  # Table 2.2, as printed
        ([0.03, 0.08, 0.6, 0.22, 0.08], False),  # in another order and unit
        ([60, 22, 8, 8, 2], True),
        ([6, 4], None),  # other sources, or one in parts: nothing to compare
        ([30, 30, 22, 8, 8, 3], None),
        ([], None),
    ],
)
def test_the_mixture_is_compared_by_shares(weights: list[float], deviates: bool | None) -> None:
    sources = tuple(SourceConfig(f"tokens/{i}", weight) for i, weight in enumerate(weights))
    config = replace(preset("gpt3-small"), data={"train": sources})
    row = next(row for row in recipe.check(config)[1] if row.quantity == "data.mixture")
    assert row.deviates is bool(deviates)
    assert row.paper == (None if deviates is None else (59.4, 21.8, 7.9, 7.9, 3.0))
    assert ("59.4/21.8/7.9/7.9/3.0" in recipe.render(config)) is (deviates is not None)
