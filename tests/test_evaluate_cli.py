"""`gpt3-jax evaluate`: prompts shown, and mistakes in one line."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

import gpt3_jax
from gpt3_jax.cli import main as front
from gpt3_jax.evals.tasks.openai_files import EXAMPLES

README = Path(gpt3_jax.__file__).parent / "evals" / "README.md"
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [text for kind, text in BLOCKS if kind == "console"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the files that the README shows."""
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"^`(\S+)`:\n\n```\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("text", COMMANDS, ids=[text.splitlines()[0] for text in COMMANDS])
def test_the_readme_shows_what_is_printed(text: str, folder: Path) -> None:
    line, _, printed = text.partition("\n")
    both = io.StringIO()
    with contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
        assert front.main(line.removeprefix("$ gpt3-jax ").split()) == 0
    assert both.getvalue() == printed


def test_the_readme_shows_a_task_of_each_kind() -> None:
    shown = [re.search(r"--show (\S+).*--shots (\S+)", text.splitlines()[0]) for text in COMMANDS]
    generated = ("two_digit_addition", "reversed_words", "analogies:sat.jsonl")
    published = ("boolq", "arc_easy", "winogrande", "lambada")
    assert {(found[1], found[2]) for found in shown if found} == {
        *((task, k) for task in generated for k in "012"),
        *((task, k) for task in published for k in "01"),
    }


def test_a_prompt_is_printed_byte_for_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [EXAMPLES["two_digit_addition"], ("\n\nQ: What is 95 plus 58?\n\nA:", " 153")]
    file = tmp_path / "two_digit_addition.jsonl"
    file.write_text("".join(json.dumps({"context": a, "completion": b}) + "\n" for a, b in rows))
    assert front.main(["evaluate", "--show", str(file), "--shots", "1", "--tokenizer", "bytes"]) == 0
    prompt = "\n\nQ: What is 95 plus 58?\n\nA: 153\n\nQ: What is 98 plus 45?\n\nA:"
    captured = capsys.readouterr()
    assert captured.out == prompt + "\n"
    assert captured.err.splitlines()[0] == (
        f"two_digit_addition, item 0, K = 1: {len(prompt)} tokens of bytes, in a context of 2,048"
    )
    assert front.main(["evaluate", "--show", str(file), "--shots", "0,1", "--tokenizer", "bytes", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [each["prompts"] for each in shown] == [[rows[0][0]], [prompt]]
    assert shown[1]["requests"][0]["prompt"] == prompt and shown[1]["tokens"] == [len(prompt)]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no model to evaluate; give the folder of a run or of a Hugging Face model"),
        (["--shots", "1,few"], "--shots 'few': expected numbers from 0, max or paper"),
        (["--shots", "-1"], "--shots '-1': expected numbers"),
        (["m", "--parallel.tensors", "2"], "parallel.tensors"),
        (["m", "--parallel.tensor", "0"], "parallel.tensor is 0; expected at least 1"),
        (["--show", "text:x"], "task text:x has no prompt: the model reads the text itself"),
        (["--show", "two_digit_addition", "--item", "x"], "has no item 'x'; they are 0 to 1999"),
        (["--show", "two_digit_addition", "--tasks", "words"], "--show takes one task"),
        (["--show", "two_digit_addition", "--shots", "2000"], "there are 1999 other than the item itself"),
        (["m", "--tokenizer", "bytes"], "--tokenizer and --item are for --show"),
        (["m", "--tasks", "nothing"], "unknown task 'nothing'"),
        (["m", "--tasks", "arithmetic", "--set", "stop"], "--set 'stop' has no value"),
        (["m", "--tasks", "x.jsonl"], "x.jsonl is not there"),
        (["m", "--limit", "0"], "limit is 0; expected at least 1 item"),
    ],
)
def test_mistakes_end_in_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").write_text("text")
    if "--show" in argv:
        argv = [*argv, "--tokenizer", "bytes"]
    assert front.main(["evaluate", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
