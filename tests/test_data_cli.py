"""`gpt3-jax data tokenize` and `data inspect`, as a person runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gpt3_jax.cli.data import main
from gpt3_jax.errors import RunError, UserError


@pytest.fixture
def shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    (tmp_path / "a.jsonl").write_text('{"body": "hello"}\n{"body": "world"}\n')
    arguments = ["--tokenizer", "bytes", "--out", str(tmp_path / "out"), "--workers", "1", "--text-key", "body"]
    assert main(["tokenize", *arguments, "--json", str(tmp_path / "*.jsonl")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["tokens"], result["documents"], result["text_bytes"]) == (12, 2, 10)
    return tmp_path / "out"


def test_inspect_shows_counts_and_text(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(shards), "--verify", "--show", "8", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["first_text"] == "hello<|endoftext|>wo"
    assert result["first_tokens"] == [*b"hello", 256, *b"wo"]
    assert (result["tokens"], result["documents"], result["dtype"], result["tokenizer"]) == (12, 2, "uint16", "bytes")
    assert result["verified"] == "sha256 of every file"
    assert main(["inspect", str(shards), str(shards)]) == 0
    assert "12 (50.0% of 24)" in capsys.readouterr().out


def test_inspect_reads_other_programs_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.frombuffer(b"plain", np.uint8).astype(np.uint32).tofile(tmp_path / "x.bin")
    arguments = ["inspect", str(tmp_path / "x.bin"), "--dtype", "uint32", "--tokenizer", "bytes", "--json", "--verify"]
    assert main(arguments) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert (result["tokens"], result["documents"], result["first_text"]) == (5, None, "plain")
    assert result["verified"] == "every id, no checksums"


def test_inspect_says_why_it_cannot_decode(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = shards / "index.json"
    index.write_text(index.read_text().replace('"name": "bytes"', '"name": "/gone.tiktoken"'))
    assert main(["inspect", str(shards), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert "/gone.tiktoken" in result["not_decoded"]
    assert "first_text" not in result


def test_verify_fails_on_a_flipped_bit(shards: Path) -> None:
    path = shards / "tokens-00000.bin"
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    for arguments in ([], ["--verify"]):
        with pytest.raises(RunError, match=r"tokens-00000\.bin does not have the checksum"):
            main(["inspect", str(shards), *arguments])


def test_an_empty_text_to_split_on_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As from an unset variable of the shell: the files would be taken whole, without a word."""
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SystemExit) as caught:
        main(["tokenize", "--tokenizer", "bytes", "--split-on", "", "--out", str(tmp_path / "o"), str(tmp_path)])
    assert caught.value.code == 2
    assert "--split-on: is empty; leave it out" in capsys.readouterr().err


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    out = ["--out", str(tmp_path / "out"), "--tokenizer", "bytes"]
    for arguments in (
        ["tokenize", *out, str(tmp_path / "none*.txt")],
        ["tokenize", *out, "--workers", "0", str(tmp_path / "a.txt")],
        ["tokenize", *out, "--shard-tokens", "0", str(tmp_path / "a.txt")],
        ["inspect", str(tmp_path / "nothing")],
        ["inspect", "--show", "-1", str(tmp_path)],
    ):
        with pytest.raises(UserError):
            main(arguments)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["tokenize", "inspect"])
def test_help_gives_every_default(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert "default" in text
    if command == "tokenize":
        assert "one document" in " ".join(text.split())
