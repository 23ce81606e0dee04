"""`gpt3-jax report compute`: the law and the counts by hand, losses read from runs, the six smaller models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

import gpt3_jax
from gpt3_jax.cli import main as front
from gpt3_jax.config import Config, preset, to_yaml
from gpt3_jax.model.params import count_params
from gpt3_jax.reports import compute
from gpt3_jax.reports.compute import SCALING_MODELS, law, non_embedding_params, pf_days

# Shapes of our own choice. Without embeddings: layers · (12 d² + 13 d) + 2 d. With them: 50257 d + 2048 d more.
SCALING = [
    # name, layers, d_model, heads, peak lr, without embeddings, parameters
    ("scaling-0.1m", 2, 64, 1, 1.6e-3, 100_096, 3_447_616),
    ("scaling-0.4m", 2, 128, 2, 1.4e-3, 396_800, 7_091_840),
    ("scaling-1.2m", 6, 128, 2, 1.3e-3, 1_189_888, 7_884_928),
    ("scaling-3.2m", 4, 256, 4, 1.2e-3, 3_159_552, 16_549_632),
    ("scaling-11m", 6, 384, 6, 1.0e-3, 10_647_552, 30_732_672),
    ("scaling-25m", 8, 512, 8, 0.9e-3, 25_220_096, 52_000_256),
]


@pytest.mark.parametrize("row", SCALING, ids=[row[0] for row in SCALING])
def test_the_six_smaller_models(row: tuple[str, int, int, int, float, int, int]) -> None:
    name, layers, d_model, heads, peak_lr, without, parameters = row
    config = preset(name)
    model = config.model
    assert (model.n_layers, model.d_model, model.n_heads, model.d_head) == (layers, d_model, heads, 64)
    assert config.optimizer.peak_lr == peak_lr and config.train.batch_tokens == preset("gpt3-small").train.batch_tokens
    assert without == layers * (12 * d_model**2 + 13 * d_model) + 2 * d_model == non_embedding_params(model)
    assert count_params(model) == parameters == without + (50257 + 2048) * d_model


def test_they_are_listed_and_grow() -> None:
    assert tuple(row[0] for row in SCALING) == SCALING_MODELS
    sizes = [row[5] for row in SCALING] + [non_embedding_params(preset("gpt3-small").model)]
    assert all(2 < larger / smaller < 4.1 for smaller, larger in itertools.pairwise(sizes))
    assert sizes[0] == pytest.approx(1e5, rel=0.01)  # the paper: as few as 100,000 parameters


def test_the_law_and_pf_days_by_hand() -> None:
    assert law(1) == 2.57 and law(1000) == pytest.approx(2.57 * 10 ** (-0.144))
    # Appendix D: 174,600M parameters and 300B tokens are 3.14e23 operations, 3,640 PF-days.
    assert pf_days(174_600_000_000, 300e9) == pytest.approx(3.1428e23 / 8.64e19)
    # At the budget of each of the paper's sizes, without embeddings: the facts of section 3.
    losses = {
        "small": 2.50,
        "medium": 2.35,
        "large": 2.26,
        "xl": 2.20,
        "2.7b": 2.13,
        "6.7b": 2.03,
        "13b": 1.97,
        "175b": 1.73,
    }
    for size, loss in losses.items():
        compute_here = pf_days(non_embedding_params(preset(f"gpt3-{size}").model), 300e9)
        assert law(compute_here) == pytest.approx(loss, abs=0.006)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(preset("gpt3-small")))
    rows = [
        {"kind": "train", "tokens": 1_000_000, "step": 1, "loss": 9.0},
        {"kind": "train", "tokens": 2_000_000, "step": 2, "loss": 8.0},
        {"kind": "eval", "tokens": 2_000_000, "loss": 8.5},
        {"kind": "train", "tokens": 2_000_000, "step": 2, "loss": 7.5},  # run again after an interruption
        {"kind": "evals", "tokens": 2_000_000, "task": "words"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"kind": "train", "tok')
    return folder


def test_a_run_beside_the_law(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curve = compute.read_run(str(run))
    assert curve.train == ((1_000_000, 9.0), (2_000_000, 7.5)) and curve.held_out == ((2_000_000, 8.5),)
    assert (curve.parameters, curve.non_embedding) == (125_226_240, 125_226_240 - 768 * (50257 + 2048))
    pytest.importorskip("matplotlib")
    picture = tmp_path / "loss.svg"
    assert front.main(["report", "compute", str(run), "--picture", str(picture)]) == 0
    table = capsys.readouterr().out
    c = 6 * curve.non_embedding * 2e6 / 8.64e19
    assert f"{c:.2e}" in table and "8.500" in table and f"{2.57 * c**-0.048:.3f}" in table
    assert "their validation set" in table and "do not compare" not in table
    assert "2.57 C^-0.048" in picture.read_text()
    assert front.main(["report", "compute", str(run), "--json"]) == 0
    (data,) = json.loads(capsys.readouterr().out)
    assert data["loss_of"] == "held-out text" and data["pf_days"] == pytest.approx(c)


def test_without_a_run_the_budgets_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["report", "compute"]) == 0
    out = capsys.readouterr().out
    readme = Path(gpt3_jax.__file__).parent / "probes" / "README.md"
    assert f"$ gpt3-jax report compute\n{out}```" in readme.read_text(encoding="utf-8")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[1:7]] == list(SCALING_MODELS) and "3.64e+03" in lines[14]


def test_a_run_that_is_given_twice_is_shown_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "link").symlink_to(run)
    assert front.main(["report", "compute", str(run), str(run.parent / "link"), str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 1
    assert captured.err.count("which is shown once") == 2


def test_a_tokenizer_other_than_the_papers_is_said(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("tokenizer: r50k_base", "tokenizer: bytes"))
    assert "its tokens are those of bytes, not the paper's" in compute.table([compute.read_run(str(run))])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none"], "none is not a folder"),
        (["empty"], "empty has no config.yaml"),
        (["begun"], "begun has logged no loss yet"),
        (["damaged"], "metrics.jsonl, line 1 is damaged"),
        (["begun", "--picture", "loss.txt"], "has no known format"),
        (["--picture", "loss.svg"], "draws the losses of runs"),
        (["begun", "--model", "gpt3-xl"], "--model is not an option of report compute"),
    ],
)
def test_mistakes_end_in_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    for name, text in {"empty": None, "begun": "", "damaged": "[]\n"}.items():
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "config.yaml").write_text(to_yaml(Config()))
            (tmp_path / name / "metrics.jsonl").write_text(text)
    assert front.main(["report", "compute", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
