"""What lm-evaluation-harness passes on is understood or refused; without the harness installed."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from gpt3_jax.cli import lm_eval
from gpt3_jax.cli.main import main
from gpt3_jax.config import ParallelConfig
from gpt3_jax.errors import UserError
from gpt3_jax.evals.harness.options import Generation, ModelArgs, generation
from gpt3_jax.generation import Beam, Greedy, Sample


def test_model_args() -> None:
    assert ModelArgs.of({"pretrained": 7}) == ModelArgs("7")
    given = {"pretrained": "a", "dtype": "bfloat16", "tensor": 2, "stage": 3, "max_length": 64, "seed": 5}
    wanted = ModelArgs("a", dtype="bfloat16", parallel=ParallelConfig(tensor=2, stage=3), max_length=64, seed=5)
    assert ModelArgs.of(given) == wanted
    assert ModelArgs.of({"pretrained": "a", "dtype": "auto"}).dtype is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "names no model; expected pretrained=FOLDER"),
        ({"pretrained": "a", "tensr": 2}, "tensr=2, which gpt3-jax does not know; the nearest is tensor"),
        ({"pretrained": "a", "zzz": 2}, "zzz=2, which gpt3-jax does not know; expected pretrained, tokenizer"),
        ({"pretrained": "a", "dtype": "float16"}, "dtype=float16; expected float32 or bfloat16"),
        ({"pretrained": "a", "stage": 7}, "parallel.stage is '7'"),
        ({"pretrained": "a", "tensor": "x"}, "parallel.tensor is 'x'"),
        ({"pretrained": "a", "batch_tokens": 0}, "batch_tokens is 0; expected at least 1"),
        ({"pretrained": "a", "max_length": 1.5}, r"max_length is 1\.5, of type float; expected a whole number"),
        ({"pretrained": "a", "seed": -1}, "seed is -1"),
    ],
)
def test_wrong_model_args_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ModelArgs.of(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kwargs", "wanted"),
    [
        ({}, Generation((), 256, Greedy())),
        ({"until": "\n"}, Generation(("\n",), 256, Greedy())),
        ({"until": ["a", "", "b"], "max_gen_toks": 5}, Generation(("a", "b"), 5, Greedy())),
        ({"max_new_tokens": 4, "max_tokens": 9}, Generation((), 4, Greedy())),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.9}, Generation((), 256, Greedy())),
        ({"temperature": 0.0}, Generation((), 256, Greedy())),
        ({"temperature": 0.7}, Generation((), 256, Sample(0.7, seed=3))),
        ({"do_sample": True, "top_p": 0.9, "top_k": 5}, Generation((), 256, Sample(1.0, 5, 0.9, seed=3))),
        ({"num_beams": 1}, Generation((), 256, Greedy())),
        ({"num_beams": 4}, Generation((), 256, Beam(4, 1.0, "power", "heuristic"))),
        (
            {"num_beams": 2, "length_penalty": 0.6, "early_stopping": "never"},
            Generation((), 256, Beam(2, 0.6, "power", "bound")),
        ),
    ],
)
def test_what_generation_kwargs_mean(kwargs: dict[str, Any], wanted: Generation) -> None:
    assert generation(kwargs, 256, seed=3) == wanted


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"repetition_penalty": 1.2}, "repetition_penalty: 1.2, which gpt3-jax does not have; expected until"),
        ({"max_gen_toks": 0}, "max_gen_toks is 0; expected at least 1"),
        ({"do_sample": True, "num_beams": 2}, "do_sample and num_beams: 2; expected one of them"),
        ({"num_beams": 2, "early_stopping": True}, "early_stopping: True; expected False or 'never'"),
        ({"do_sample": True, "top_p": 2.0}, r"top_p is 2\.0"),
    ],
)
def test_generation_that_there_is_not_is_one_line(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        generation(kwargs, 256, seed=0)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["--tasks", "a"], ["run", "--model", "gpt3-jax", "--tasks", "a"]),
        (["run", "--tasks", "a"], ["run", "--model", "gpt3-jax", "--tasks", "a"]),
        (["run", "--model_args", "pretrained=a"], ["run", "--model", "gpt3-jax", "--model_args", "pretrained=a"]),
        (["--model", "hf", "--tasks", "a"], ["run", "--model", "hf", "--tasks", "a"]),
        (["-M", "hf"], ["run", "-M", "hf"]),
        (["--model=hf"], ["run", "--model=hf"]),
        (["--config", "c.yaml"], ["run", "--config", "c.yaml"]),
        (["run"], ["run"]),
        (["ls", "tasks"], ["ls", "tasks"]),
        (["validate", "--tasks", "a"], ["validate", "--tasks", "a"]),
    ],
)
def test_the_model_is_ours_where_none_is_named(given: list[str], wanted: list[str]) -> None:
    assert lm_eval.arguments(given) == wanted


@pytest.mark.parametrize("given", [["--include_path", "nowhere"], ["--include_path=nowhere"]])
def test_a_folder_of_tasks_that_is_not_there_is_one_line(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lm-eval", "--tasks", "a", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--include_path nowhere: there is no such folder" in line


def test_without_the_harness_a_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("lm_eval", "lm_eval.__main__"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["lm-eval", "--tasks", "a"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert "pip install -c constraints.txt -e '.[evals]'" in err
