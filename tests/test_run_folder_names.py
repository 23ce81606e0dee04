"""A run folder of any name trains and generates, or is refused before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tiny_run import tiny, write_data

from gpt3_jax.cli.main import main
from gpt3_jax.config import to_dict

PRINTABLE = [chr(code) for code in range(32, 127)]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One batch, with TensorBoard's events, which are named after their folder too."""
    folder = tmp_path_factory.mktemp("run-names")
    write_data(folder)
    train = {"tokens": 128, "batch_tokens": 128, "tensorboard": True}
    file = folder / "config.yaml"
    file.write_text(
        yaml.safe_dump(to_dict(tiny(folder, folder / "unused", train=train, parallel={"data": 8}, data={"eval": []})))
    )
    return file


def trains_or_is_refused(
    name: str, config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> bool:
    """Whether it trained, and then also completed a prompt."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    code = main(["train", "--config", str(config), f"--train.run_dir={name}"])
    said = capsys.readouterr()
    if code != 0:
        assert (code, len(said.err.splitlines()), said.out) == (2, 1, ""), said
        assert not list(folder.iterdir())
        return False
    assert "trained on 128 tokens" in said.out
    assert (folder / name / "checkpoints" / "tokens-128").is_dir() and list((folder / name / "tensorboard").iterdir())
    options = ["--prompt", "a", "--max-tokens", "1", "--temperature", "0", "--json"]
    assert main(["generate", *options, "--", name]) == 0
    assert '"completion_tokens": 1' in capsys.readouterr().out
    assert len(list(folder.iterdir())) == 1
    return True


@pytest.mark.parametrize("name", ["r[1]", "-r", "{a: 1}", "~r/..", "a\nb", "a\\b"])
def test_names_that_mean_something_elsewhere(
    name: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = trains_or_is_refused(name, config, tmp_path / "here", monkeypatch, capsys)
    assert trained == (name not in ("~r/..", "a\nb", "a\\b"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [f"r{c}1{c}" for c in PRINTABLE] + [c for c in PRINTABLE if c not in "./~"] + ["\n", "r\n1"]
)
def test_every_printable_character(
    name: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert trains_or_is_refused(name, config, tmp_path / "here", monkeypatch, capsys) == (not {"\n", "\\"} & set(name))
