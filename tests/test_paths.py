"""Paths that a person gives mean the same in every field and option."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpt3_jax import config as configuration
from gpt3_jax.cli import main as front
from gpt3_jax.config import Config, SourceConfig, load_config
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path

PATH_FIELDS = {
    "train.run_dir", "data.tokenizer", "data.train[].path", "data.eval[].path", "evals.words", "evals.data",
}  # fmt: skip
OTHER_TEXT_FIELDS = {"distributed.coordinator"}
OTHER_OPTIONS = {
    "what", "--prompt", "--text-key", "--split-on", "--topology", "--model", "--tasks", "--show", "--shots", "--set",
    "--item", "--tokenizer", "--stop", "--probes", "--split-samples-on",
}  # fmt: skip
"""Text that is no path. `report --model` is given to `load_config`, `evaluate --tasks` and `--show` to `select`, which
resolves the paths in them."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_a_path_means(home: Path) -> None:
    assert local_path("~/runs/a") == f"{home}/runs/a" and local_path("~") == str(home)
    for same in (
        "runs/a",
        "./a",
        "../a",
        "/a//b/",
        "a~",
        "./~a",
        "$HOME/a",
        "a:b",
        "c:/a",
        "a b",
        "r[1]",
        "r*",
        "ä",
        "a://b"[1:],
    ):
        assert local_path(same) == same
    assert local_path(Path("runs") / "a") == "runs/a"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "train.run_dir is empty"),
        ("gs://bucket/run", "'gs://bucket/run' is an address"),
        ("https://x", "is an address"),
        ("~nobody-has-this-name/x", r"whose home folder does not exist on this machine; write \./~nobody"),
        ("a\nb", r"'a\\nb' has the character '\\n'"),
        ("a\0b", "has the character"),
        ("a\udce4b", "has the character"),  # a byte that is not UTF-8, as Python hands it over
    ],
)
def test_what_no_path_is(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        local_path(given, "train.run_dir")
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()


def _text_fields(cls: Any, prefix: str) -> Iterator[str]:
    for name, kind in typing.get_type_hints(cls).items():
        if kind is str:
            yield f"{prefix}{name}"
        elif dataclasses.is_dataclass(kind):
            yield from _text_fields(kind, f"{prefix}{name}.")
        for inner in typing.get_args(kind):
            if dataclasses.is_dataclass(inner):
                yield from _text_fields(inner, f"{prefix}{name}[].")


def test_every_text_field_of_the_configuration_is_known_to_be_a_path_or_not() -> None:
    found = set(_text_fields(Config, ""))
    assert found == PATH_FIELDS | OTHER_TEXT_FIELDS, "a new one: pass a path through local_path, and list it here"


def test_fields_of_the_configuration_are_resolved(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("train: {run_dir: ~/r}\ndata: {tokenizer: ~/t, train: [{path: ~/d}], eval: [{path: ~/e}]}\n")
    read = load_config([file])
    assert read.train.run_dir == f"{home}/r" and read.data.tokenizer == f"{home}/t"
    assert (read.data.train, read.data.eval) == ((SourceConfig(f"{home}/d"),), (SourceConfig(f"{home}/e"),))
    home.mkdir()
    file.rename(home / "c.yaml")
    assert load_config(["~/c.yaml"], ["--train.run_dir=~/s"]).train.run_dir == f"{home}/s"
    for overrides in (
        ["--train.run_dir", "gs://b/r"],
        ["--data.tokenizer", "gs://b/r"],
        ["--data.train", "[{path: 'gs://b/r'}]"],
        ["--data.eval", "[{path: 'gs://b/r'}]"],
        ["--evals.words", "gs://b/r"],
    ):
        with pytest.raises(UserError, match="'gs://b/r' is an address"):
            load_config([], overrides)
    with pytest.raises(UserError, match=r"--config 'gs://b/c\.yaml' is an address"):
        load_config(["gs://b/c.yaml"])
    assert load_config(["gpt3-small"]).model == configuration.preset("gpt3-small").model


COMMAND_LINES = {
    "data": (["tokenize", "x.txt", "--out", "o"], ["inspect", "x"]),
    "convert": (["to-hf", "a", "b"], ["from-hf", "a", "b"]),
    "generate": (["a"],),
    "evaluate": (["a"],),
    "plan": ([],),
    "report": (["paper"],),
    "bench": ([],),
    "bias": (["a"],),
    "contamination": (["a", "--tasks", "x"],),
    "memorisation": (["a"],),
    "news": (["write", "a", "--articles", "x"], ["score", "a"]),
}
"""For each command with a parser of its own, lines that it takes; the paths of `train` are those of `load_config`."""


class _Parsed(BaseException):
    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def _parser(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Parsed(self)

    with monkeypatch.context() as patched:
        for name in ("parse_args", "parse_known_args", "parse_known_intermixed_args"):
            patched.setattr(argparse.ArgumentParser, name, stop)
        with pytest.raises(_Parsed) as caught:
            importlib.import_module(f"gpt3_jax.cli.{command}").main(COMMAND_LINES[command][0])
    return caught.value.parser


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)
        else:
            yield action


@pytest.mark.parametrize("command", sorted(set(front.COMMANDS) - {"train", "lm-eval"}))
def test_every_text_option_of_a_command_is_resolved_or_known_to_be_no_path(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for action in _actions(_parser(command, monkeypatch)):
        if action.nargs == 0 or action.choices or action.type in (int, float, local_path):
            continue
        name = action.option_strings[-1] if action.option_strings else action.dest
        assert name in OTHER_OPTIONS, f"{command} {name}: give it type=local_path, or list it as no path"


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--config", "gs://b/x"],
        ["train", "--train.run_dir", "gs://b/x"],
        ["data", "tokenize", "gs://b/x", "--out", "o"],
        ["data", "tokenize", "x.txt", "--out", "gs://b/x"],
        ["data", "tokenize", "x.txt", "--out", "o", "--tokenizer", "gs://b/x"],
        ["data", "inspect", "gs://b/x"],
        ["convert", "to-hf", "gs://b/x", "o"],
        ["convert", "to-hf", "r", "gs://b/x"],
        ["convert", "from-hf", "gs://b/x", "o"],
        ["convert", "from-hf", "h", "gs://b/x"],
        ["generate", "gs://b/x"],
        ["generate", "r", "--file", "gs://b/x"],
        ["evaluate", "gs://b/x"],
        ["evaluate", "r", "--out", "gs://b/x"],
        ["evaluate", "r", "--tasks", "text:gs://b/x"],
        ["evaluate", "r", "--tasks", "gs://b/x"],
        ["evaluate", "r", "--words", "gs://b/x"],
        ["evaluate", "--show", "analogies:gs://b/x"],
        ["evaluate", "--show", "two_digit_addition", "--tokenizer", "gs://b/x"],
        ["report", "compare", "gs://b/x", "a"],
        ["plan", "--config", "gs://b/x", "--topology", "v5p:2x2x2"],
        ["plan", "--config", "gpt3-xl", "--topology", "v5p:2x2x2", "--picture", "gs://b/x"],
        ["report", "zero", "--topology", "v5p:2x2x2", "--picture", "gs://b/x"],
        ["bench", "loader", "gs://b/x"],
        ["bench", "--folder", "gs://b/x"],
        ["bench", "--config", "gs://b/x"],
    ],
)
def test_an_address_is_refused_in_one_line_and_makes_no_folder(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert front.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'gs://b/x' is an address; expected a file or folder of this machine" in line
    assert not list(tmp_path.iterdir())
