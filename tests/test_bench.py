"""`gpt3-jax bench`: the figures are of what was really read. No figure is asserted: machines differ."""

import json
from pathlib import Path

import pytest

from gpt3_jax.cli.bench import main
from gpt3_jax.errors import UserError


def test_the_loader_is_measured_on_shards_of_the_size_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--gigabytes", "0.01", "--n-ctx", "64", "--batch", "8", "--batches", "3", "--repeat", "2"]
    assert main(["loader", *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0.009 < result["gigabytes"] < 0.012
    assert 0 < result["slowest"] <= result["loader_tokens_per_second"] <= result["fastest"]
    assert (result["n_ctx"], result["batch"]) == (64, 8)


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--batch is 0; expected more than 0"):
        main(["loader", "--batch", "0"])
    with pytest.raises(UserError, match="does not exist"):
        main(["loader", str(tmp_path / "nothing")])
