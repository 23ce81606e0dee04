"""What is written in a file or on the command line, and what it means: a table of surprises of YAML and of numbers."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from gpt3_jax.config import (
    Config,
    OptimizerConfig,
    SourceConfig,
    cost_settings,
    from_dict,
    load_config,
    loading,
    to_dict,
)
from gpt3_jax.config.setting import meanings
from gpt3_jax.config.yaml_text import BadYaml, read_yaml
from gpt3_jax.errors import UserError


def load(folder: Path, text: str) -> Config:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config([path])


REFUSED = [
    # YAML, and where it surprises
    ("train: {seed: 1}\ntrain: {tokens: 5}", "the key 'train' appears on lines 1 and 2"),
    ("model:\n  n_layers: 2\n  d_model: 64\n  n_layers: 4", "the key 'n_layers' appears on lines 2 and 4"),
    ("data: {train: [{path: x, path: y}]}", "the key 'path' appears twice on line 1"),
    ("train: {seed: 1}\n---\ntrain: {seed: 2}", "line 2: expected a single document"),
    ("x: &a {seed: 1}\ntrain:\n  <<: *a", "line 3: merge keys"),
    ("train: &a {seed: 1}\nmodel: *a", "line 1: the value at this anchor is used again"),
    ("train: &a [*a]", "line 1: the value at this anchor is used again"),
    ("model: *nothing", "line 1: found undefined alias 'nothing'"),
    ("train: {seed: !!int 3}", "line 1: the tag tag:yaml.org,2002:int"),
    ("train: !!python/object/apply:os.getcwd []", "line 1: the tag tag:yaml.org,2002:python"),
    ("train:\n\tseed: 1", "line 2: while scanning"),
    ("? [a]\n: 1", "line 1: a key is a sequence"),
    ("1: {a: 2}", "unknown key '1'"),
    ("on: {a: 2}", "unknown key 'on'"),
    ("null: {a: 2}", "unknown key 'null'"),
    ("[" * 3000, "nested too deeply"),
    ("train:", "train in 'mine.yaml' is empty; expected the keys run_dir"),
    ("train: {run_dir: }", "train.run_dir in 'mine.yaml' is null"),
    ("train: {run_dir: ~}", "train.run_dir in 'mine.yaml' is null"),
    # truth values
    *((f"train: {{tensorboard: {word}}}", "expected true or false") for word in ("yes", "on", "No", "1", "y", "''")),
    # numbers
    ("parallel: {stage: true}", "'true'; expected one of 0, 1, 2, 3"),
    ("parallel: {stage: 2.5}", "'2.5'; expected one of 0, 1, 2, 3"),
    ("parallel: {stage: 7}", "'7'; expected one of 0, 1, 2, 3"),
    *(
        (f"train: {{seed: {number}}}", "expected a whole number")
        for number in (
            "017",
            "0o17",
            "0x1F",
            "1:30",
            "2.5",
            "1e-1",
            "1__0",
            "_1",
            "1e",
            ".nan",
            "'1 '",
            "2024-01-01",
            "١",
        )
    ),
    ("train: {tokens: 9223372036854775808}", "below 2^63"),
    ("train: {tokens: 1e19}", "below 2^63"),
    ("train: {tokens: 1e999999999}", "below 2^63"),
    ("train: {tokens: 1e-99999999999999999999}", "below 2^63"),
    (f"train: {{tokens: {'1' * 6000}}}", "below 2^63"),
    *(
        (f"optimizer: {{peak_lr: {number}}}", "expected a finite number")
        for number in ("1e400", "1.5e-1_0", ".inf", "-.inf", ".nan", "inf", "infinity", "nan", "true", "1:30", "''")
    ),
    ("data: {train: [{path: x, weight: 1e400}]}", "data.train[0].weight in 'mine.yaml' is '1e400'"),
    # words and lists
    ("model: {residual_init: ' 2L'}", "' 2L'; expected one of 2L, L, none"),
    ("model: {attention_pattern: dense}", "'dense'; expected a list such as [dense, banded]"),
    ("model: {attention_pattern: []}", "model.attention_pattern is empty"),
    ("model: {attention_pattern: [[dense]]}", "model.attention_pattern[0] in 'mine.yaml' is ['dense']"),
    ("data: {train: [x]}", "data.train[0] in 'mine.yaml' is 'x'; expected e.g. {path: FOLDER"),
    ("data: {train: [{path: [a]}]}", "data.train[0].path in 'mine.yaml' is ['a']; expected text"),
    ("train: {run_dir: {a: b}}", "train.run_dir in 'mine.yaml' is {'a': 'b'}; expected text"),
    ("train: {remat: none}\nmemory: {remat: full}", "memory.remat in 'mine.yaml' is also set by its earlier name"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=[row[0].replace("\n", " ")[:60] for row in REFUSED])
def test_refused(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load(Path(), text)
    assert (words in str(caught.value) and "mine.yaml" in str(caught.value)) or "attention_pattern is empty" in words
    assert "\n" not in str(caught.value)


def test_a_key_twice_is_refused_with_both_lines() -> None:
    try:
        found = read_yaml("train:\n  seed: 1\n\ntrain:\n  tokens: 5")
    except BadYaml as error:
        found = str(error)
    assert found == "the key 'train' appears on lines 1 and 4; keep one of them"


UNDERSTOOD: list[tuple[str, str, object]] = [
    ("parallel: {stage: '2'}", "parallel.stage", 2),
    ("train: {seed: 1_000}", "train.seed", 1000),
    ("train: {seed: +3e2}", "train.seed", 300),
    ("train: {seed: 0}", "train.seed", 0),
    ("train: {seed: 0e5}", "train.seed", 0),
    ("train: {tokens: 9223372036854775807}", "train.tokens", 2**63 - 1),
    ("train: {tokens: 9007199254740993.0}", "train.tokens", 2**53 + 1),
    ("optimizer: {peak_lr: 1}", "optimizer.peak_lr", 1.0),
    ("optimizer: {peak_lr: .5}", "optimizer.peak_lr", 0.5),
    ("train: {tensorboard: FALSE}", "train.tensorboard", False),
    # text is what is written, whatever YAML 1.1 takes it for
    ("train: {run_dir: 2024-01-01}", "train.run_dir", "2024-01-01"),
    ("train: {run_dir: no}", "train.run_dir", "no"),
    ("train: {run_dir: 017}", "train.run_dir", "017"),
    ("train: {run_dir: 1:30}", "train.run_dir", "1:30"),
    ("train: {run_dir: 'null'}", "train.run_dir", "null"),
    ("train: {run_dir: ' a '}", "train.run_dir", " a "),
    ("train: {run_dir: .inf}", "train.run_dir", ".inf"),
    ("\ufefftrain: {seed: 5}", "train.seed", 5),
    ("data: {train: []}", "data.train", ()),
    ("", "train.seed", 0),
    ("# nothing", "train.seed", 0),
    ('{"train": {"seed": 5}}', "train.seed", 5),
]


@pytest.mark.parametrize(("text", "key", "value"), UNDERSTOOD, ids=[row[0] for row in UNDERSTOOD])
def test_understood(text: str, key: str, value: object, tmp_path: Path) -> None:
    section, name = key.split(".")
    found = getattr(getattr(load(tmp_path, text), section), name)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["--train.tokens="], "--train.tokens is empty; expected a whole number"),
        (["--train.tokens"], "--train.tokens has no value"),
        (["--train.tokens", "--train.seed", "1"], "--train.tokens has no value"),
        (["--train.tensorboard"], "--train.tensorboard has no value; expected true or false"),
        (["--data.train", '[{"path": "a", "path": "b"}]'], "the key 'path' appears twice on line 1"),
        (["--data.train", '[{"path": "a", "weigh": 2}]'], "--data.train[0].weigh; the keys are path, weight, dtype"),
        (["--data.train=["], "--data.train '[' is not a list: line 1"),
        (["--data.train", "tokens/web"], "--data.train is 'tokens/web'; expected a list such as [{path: FOLDER"),
        (["--data.train", "null"], "--data.train is 'null'; expected a list"),
        (["--optimizer.peak_lr=1e400"], "--optimizer.peak_lr is '1e400'; expected a finite number"),
        (["--model", "3"], "unknown option --model"),
        (["--"], "unknown option --"),
    ],
)
def test_refused_options(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config([], overrides)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_last_of_several_options_wins() -> None:
    assert load_config([], ["--train.seed", "1", "--train.seed=2"]).train.seed == 2
    assert load_config([], ["--memory.remat", "none", "--train.remat", "minimal"]).memory.remat == "minimal"


def test_python_callers_get_no_infinity_either() -> None:
    with pytest.raises(UserError, match=r"optimizer\.peak_lr is inf"):
        OptimizerConfig(peak_lr=float("inf"))
    with pytest.raises(UserError, match=r"weight is nan"):
        SourceConfig("a", float("nan"))


# ---------------------------------------------------------------------------------------------------------------
# Names of earlier versions, and what is derived from the fields
# ---------------------------------------------------------------------------------------------------------------

BEFORE = {"remat": "minimal", "unroll": 2, "mlp_parts": 1, "loss_chunk": 77, "microbatch": 4}


def test_names_of_earlier_versions_are_read_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loading._tell_once.cache_clear()
    options = [f"--train.{name}={value}" for name, value in BEFORE.items()]
    with caplog.at_level(logging.WARNING):
        config = load_config([], options)
        assert load(tmp_path, f"train: {json.dumps(BEFORE)}") == config
        assert from_dict({"train": BEFORE}) == config
    assert dataclasses.asdict(config.memory) == BEFORE
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"train.{name} is now called memory.{name}; the old name still works" for name in BEFORE]


def test_a_policy_that_is_gone_is_taken_for_the_nearest_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loading._tell_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for read in (
            load_config([], ["--memory.remat", "dots"]),
            load(tmp_path, "memory: {remat: dots}"),
            from_dict({"memory": {"remat": "dots"}}),
        ):
            assert read.memory.remat == "minimal"
    said = [record.getMessage().partition(" is dots, ") for record in caplog.records]
    options, file, record = (where for where, _, _ in said)
    assert options == "--memory.remat" and record == "memory.remat in the saved configuration"
    assert file.startswith("memory.remat in '") and file.endswith(".yaml'")
    assert {what for _, _, what in said} == {
        "which was removed; using minimal (same results but for rounding, more memory than full)"
    }


def test_the_ramps_sizes_were_called_stages(tmp_path: Path) -> None:
    assert load(tmp_path, "train: {ramp_stages: 4}").train.ramp_sizes == 4
    assert from_dict({"train": {"ramp_stages": 4}}) == load_config([], ["--train.ramp_stages", "4"])


def test_a_record_without_newer_settings_had_their_defaults() -> None:
    record: dict[str, Any] = to_dict(Config())
    record["train"] |= record.pop("memory")
    del record["optimizer"]["weight_decay_on"]
    assert from_dict(json.loads(json.dumps(record))) == Config()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([], "the saved configuration is []"),
        ({"train": 3}, "train in the saved configuration is 3"),
        ({"train": {"seed": True}}, "train.seed in the saved configuration is True; expected a whole number"),
        ({"optimizer": {"peak_lr": float("nan")}}, "optimizer.peak_lr in the saved configuration is nan"),
        ({"train": {"nothing": 1}}, "unknown key 'train.nothing' in the saved configuration"),
    ],
    ids=str,
)
def test_a_damaged_record_is_one_line(record: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(record)
    assert words in str(caught.value)


def test_what_a_setting_means_is_said_at_the_field() -> None:
    """The two lists that stood in the resume check and in the receipt before."""
    free = {f"{section}.{name}" for section, name, meaning in meanings(Config) if not meaning.changes_run}
    assert free == {
        "train.run_dir", "train.tokens", "train.log_tokens", "train.eval_tokens", "train.eval_sequences",
        "train.nonfinite", "train.tensorboard", "memory.microbatch", "memory.remat", "memory.unroll",
        "memory.mlp_parts", "memory.loss_chunk", "data.train", "data.eval", "data.builtin", "data.prefetch",
        "data.tokenizer", "evals.tasks", "evals.shots", "evals.every_tokens", "evals.limit", "evals.words",
        "evals.data",
        "parallel.stage", "parallel.replica", "parallel.data", "parallel.tensor", "parallel.overlap",
        "parallel.tensor_overlap",
        "checkpoint.every_tokens", "checkpoint.keep_last", "checkpoint.keep_every_tokens", "checkpoint.on_change",
        "distributed.mode", "distributed.coordinator", "distributed.processes", "distributed.process_id",
    }  # fmt: skip
    assert set(cost_settings(Config())) == {
        "stage", "remat", "reduce_dtype", "dtype", "mlp_parts", "loss_chunk", "unroll", "overlap",
        "tensor_overlap",
    }  # fmt: skip
