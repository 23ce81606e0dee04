"""What `memory.unroll` 0 stands for."""

from __future__ import annotations

import jax
import pytest

from gpt3_jax.config import Config, preset, replace
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.step import unroll


def periods(config: Config, devices: int = 1) -> int:
    config = replace(config, parallel={"data": devices})
    return unroll(config, make_mesh(config.parallel, jax.devices()[:devices]))


def test_a_long_run_on_one_cpu_has_no_loop() -> None:
    small = preset("gpt3-small")
    assert small.memory.unroll == 0
    assert periods(small) == 6  # of a dense and a banded layer: all twelve
    assert periods(replace(small, model={"attention_pattern": ("dense",)})) == 12


@pytest.mark.parametrize(
    ("change", "devices"),
    [
        ({}, 8),
        ({"memory": {"remat": "offload"}}, 1),
        ({"train": {"tokens": 100_000}}, 1),  # over before the compile time is repaid
        ({"model": {"d_model": 96, "n_heads": 2}}, 1),
    ],
)
def test_others_have_one(change: dict[str, dict[str, object]], devices: int) -> None:
    assert periods(replace(preset("gpt3-small"), **change), devices) == 1


def test_a_number_is_taken_as_it_is() -> None:
    assert periods(replace(preset("gpt3-small"), memory={"unroll": 3}), 8) == 3
