"""`gpt3-jax generate` and `gpt3_jax.generate`, from a checkpoint on disk."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import gpt3_jax
from gpt3_jax.cli import main as command_line
from gpt3_jax.cli.generate import main
from gpt3_jax.config import Config, from_dict, to_dict
from gpt3_jax.errors import UserError
from gpt3_jax.generation import Beam, Generator, Sampling
from gpt3_jax.model.decode import decode_weights
from gpt3_jax.model.stored import Stored
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.checkpoint.trained import load_trained
from gpt3_jax.train.state import init_state

MODEL = {
    "n_layers": 2, "d_model": 16, "n_heads": 2, "n_ctx": 32, "n_vocab": 257, "vocab_multiple": 16, "band_width": 4,
    "init_std": 0.5, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has just begun: random parameters, in a checkpoint as training writes it."""
    folder = tmp_path_factory.mktemp("run")
    values = to_dict(Config())
    values["model"] |= MODEL
    values["data"]["tokenizer"] = "bytes"
    values["parallel"]["data"] = 1
    config = from_dict(values)
    store = CheckpointStore(folder / "checkpoints", keep_last=1, keep_every_tokens=0)
    store.save(0, 0, init_state(config, make_mesh(config.parallel, jax.devices()[:1])), {"config": values}, wait=True)
    return folder


@pytest.mark.parametrize(
    "parallel", [[], ["--parallel.replica", "2", "--parallel.data", "2", "--parallel.tensor", "2"]]
)
def test_weights_in_int8_are_quantised_as_they_are_loaded_and_their_error_is_said(
    run_dir: Path, parallel: list[str], capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main([str(run_dir), "--prompt", "ab", "--weights", "int8", *OPTIONS, *parallel]) == 0
    out = capfd.readouterr().out
    assert out.strip("\n") and "weights in int8: rms error 0." in caplog.text and "largest error 0.39%" in caplog.text
    quantised = Generator.load(run_dir, weights="int8")
    weights = quantised._weights
    assert isinstance(weights.token_embedding, Stored) and weights.blocks[0].qkv_kernel.values.dtype == "int8"
    state = load_trained(run_dir)
    placed = decode_weights(state.params, state.config.model, "int8")
    jax.tree.map(np.testing.assert_array_equal, weights, placed)
    pieces = quantised.stream(["ab"], max_tokens=6, sampling=Sampling(temperature=0))
    assert "".join(piece.text for piece in pieces) == out.removesuffix("\n")


def test_weights_in_another_dtype(
    run_dir: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main([str(run_dir), "--prompt", "ab", "--weights", "float32", *OPTIONS]) == 0
    out = capfd.readouterr().out
    assert "weights in float32: as the checkpoint has them" in caplog.text
    assert out == greedy(run_dir, "ab")[0] + "\n"
    assert main([str(run_dir), "--prompt", "ab", "--weights", "bfloat16", *OPTIONS]) == 0
    assert "weights in bfloat16: rms error 0.1" in caplog.text
    with pytest.raises(UserError, match="weights is 'int4'; expected float32, bfloat16, int8"):
        gpt3_jax.generate(run_dir, "ab", weights="int4")  # type: ignore[arg-type]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def greedy(run_dir: Path, *prompts: str, tokens: int = 6) -> list[str]:
    return gpt3_jax.generate(run_dir, prompts, max_tokens=tokens, temperature=0)


OPTIONS = ["--max-tokens", "6", "--temperature", "0"]


def test_a_prompt_is_completed_and_only_the_completion_printed(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(run_dir), "--prompt", "hello", *OPTIONS]) == 0
    assert capsys.readouterr().out == greedy(run_dir, "hello")[0] + "\n"


def test_several_completions_stand_apart_in_order(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(run_dir), "--prompt", "ab", "--prompt", "c", "--samples", "2", "--max-tokens", "5", "--seed", "3"]
    assert main(arguments) == 0
    texts = gpt3_jax.generate(run_dir, ["ab", "c"], max_tokens=5, samples=2, seed=3)
    assert len(set(texts)) == 4
    heads = [f"--- prompt {p} of 2, sample {s} of 2 ---" for p in (1, 2) for s in (1, 2)]
    assert capsys.readouterr().out == "".join(f"{head}\n{text}\n" for head, text in zip(heads, texts, strict=True))


def test_prompts_from_a_file_and_a_pipe_are_one_prompt_without_the_last_newline(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = greedy(run_dir, "two\nlines")[0] + "\n"
    (tmp_path / "prompt.txt").write_text("two\nlines\n")
    assert main([str(run_dir), "--file", str(tmp_path / "prompt.txt"), *OPTIONS]) == 0
    assert capsys.readouterr().out == expected
    pipe(monkeypatch, b"two\nlines\n")
    assert main([str(run_dir), *OPTIONS]) == 0
    assert capsys.readouterr().out == expected


def test_at_a_terminal_each_line_is_a_prompt_and_a_mistake_does_not_end_it(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(f"one\n{'x' * 32}\ntwo\n"))
    assert main([str(run_dir), *OPTIONS]) == 0
    captured = capsys.readouterr()
    assert captured.out == "".join(text + "\n" for text in greedy(run_dir, "one", "two"))
    assert captured.err.count("prompt> ") == 4
    assert "prompt 1 is 32 tokens long" in captured.err


def test_json_says_all_about_each_completion(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--prompt", "hello", "--prompt", "x" * 30, "--json", *OPTIONS]) == 0
    records = json.loads(capsys.readouterr().out)
    expected = greedy(run_dir, "hello", "x" * 30)
    assert [record["text"] for record in records] == expected
    assert records[0]["prompt"] == "hello"
    assert [record["prompt_tokens"] for record in records] == [5, 30]
    assert records[0]["finish"] in ("max_tokens", "end_of_text")
    assert (records[1]["finish"], records[1]["completion_tokens"]) == ("context", 2)


def test_a_stop_text_ends_a_completion(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = greedy(run_dir, "hello", tokens=12)
    stop = text[5:7]
    assert main([str(run_dir), "--prompt", "hello", "--stop", stop, "--max-tokens", "12", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == text[: text.index(stop)] + "\n"
    found = gpt3_jax.generate(run_dir, "hello", max_tokens=12, temperature=0, stop=["never there", stop])
    assert found == [text[: text.index(stop)]]
    arguments = [str(run_dir), "--prompt", "hello", "--stop", stop, "--json", "--max-tokens", "12"]
    assert main([*arguments, "--temperature", "0"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["text"], record["finish"]) == (text[: text.index(stop)], "stop")


def test_beams_are_those_of_the_library(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = ["hello", "a", "two words"]
    assert main([str(run_dir), *(f"--prompt={text}" for text in prompts), "--beams", "3", "--max-tokens", "6"]) == 0
    generator = Generator.load(run_dir)
    found = dict(generator.complete(generator.encode(prompts), (), 6, Beam(3)))
    shown = "".join(f"--- prompt {i + 1} of 3 ---\n{found[i].text}\n" for i in range(3))
    assert capsys.readouterr().out == shown
    assert [found[i].text for i in range(3)] != greedy(run_dir, *prompts)


def test_a_full_context_is_said(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--prompt", "x" * 30, *OPTIONS]) == 0
    assert "the context of 32 tokens is full" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--prompt", "a"], "run folder 'nowhere' does not exist"),
        (["{run}", "--prompt", "a" * 40], "prompt 1 is 40 tokens long; the model's context is 32 tokens"),
        (["{run}", "--prompt", "a", "--temperature", "-1"], "temperature is -1.0"),
        (["{run}", "--prompt", "a", "--top-p", "2"], "top_p is 2.0"),
        (["{run}", "--prompt", "a", "--stop", ""], "stop string 1 is empty"),
        (["{run}", "--prompt", "a", "--beams", "0"], "beam width is 0"),
        (["{run}", "--prompt", "a", "--beams", "2", "--top-k", "3"], "leave out --top-k, or --beams"),
        (["{run}", "--file", "absent.txt"], "prompt file 'absent.txt' cannot be read: No such file"),
        (["{tmp}", "--prompt", "a"], "holds no checkpoint"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    filled = [argument.format(run=run_dir, tmp=tmp_path) for argument in arguments]
    assert command_line.main(["generate", *filled]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_bytes_that_are_no_text_are_refused(run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe(monkeypatch, b"caf\xe9")
    with pytest.raises(UserError, match="standard input is not UTF-8 text"):
        main([str(run_dir)])


def test_the_library_takes_one_prompt_or_several(run_dir: Path) -> None:
    assert gpt3_jax.generate(run_dir, "hello", max_tokens=3, temperature=0) == greedy(run_dir, "hello", tokens=3)
    first, second = gpt3_jax.generate(run_dir, "hello", max_tokens=8, samples=2)
    assert first != second
    assert [first, second] == gpt3_jax.generate(run_dir, "hello", max_tokens=8, samples=2)


def test_help_gives_every_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for default in ("(default: 128)", "(default: 1.0)", "(default: 0)", "(default: 1)"):
        assert default in shown
