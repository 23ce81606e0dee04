"""`gpt3-jax plan` and `report`: what a person gets who asks for something wrong, and what is printed otherwise."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from test_plan_compiled import fake_topology

from gpt3_jax.cli import main as front
from gpt3_jax.plan import topologies

PLAN = ["plan", "--config", "gpt3-small", "--topology"]


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr of a command line that is refused with exit code 2."""
    assert front.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("gpt3-jax: error: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["plan"], ["needs a configuration", "--config"]),
        (["plan", "--config", "gpt3-small"], ["needs a topology", "--list-topologies"]),
        (["plan", "--config", "gpt3-smal", "--topology", "v5p:2x2x1"], ["gpt3-smal"]),
        ([*PLAN, "v5x:2x2"], ["unknown topology 'v5x:2x2'", "the nearest is v5"]),
        ([*PLAN, "b300:1x8"], ["unknown topology 'b300:1x8'", "h200"]),
        ([*PLAN, "quantum"], ["unknown topology 'quantum'", "FAMILY:SIZE"]),
        ([*PLAN, "v5p"], ["size ''", "v5p:16x16x24"]),
        ([*PLAN, "v5p:8xx8"], ["'8xx8'"]),
        ([*PLAN, "v5p:0x1x1"], ["'0x1x1'"]),
        ([*PLAN, "v6e:4x4x4"], ["3 dimensions", "v6e torus has 2"]),
        ([*PLAN, "h100:8"], ["1 numbers", "NODESxGPUS"]),
        ([*PLAN, "h100:9999x99"], ["989,901 devices", "at most"]),
        ([*PLAN, "h100:2x8", "--slices", "2"], ["--slices is 2", "h100:4x8"]),
        ([*PLAN, "v5p:2x2x1", "--slices", "0"], ["--slices is 0", "at least 1"]),
        ([*PLAN, "v5p:2x2x1", "--keep", "0", "--search"], ["--keep is 0", "at least 1"]),
        ([*PLAN, "v5p:2x2x1", "--picture", "x.bmp"], ["'x.bmp'", ".png"]),
        ([*PLAN, "v5p:2x2x1", "--picture", "no/such/folder/x.png"], ["no/such/folder/x.png", "does not exist"]),
        ([*PLAN, "v5p:2x2x1", "--parallel.stagge", "3"], ["parallel.stagge", "parallel.stage"]),
        (["report", "zero"], ["needs a topology"]),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) and value[0] in ("plan", "report") else "",
)
def test_one_line_says_what_to_do(argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(argv, capsys)
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("topology", "module", "words"),
    [
        ("v5p:2x2x1", "libtpu", ["libtpu is not installed", "pip install libtpu"]),
        ("h100:1x8", "jax_cuda", ["CUDA plugin is not installed", "pip install 'jax[cuda13]'"]),
    ],
)
def test_a_compiler_that_is_not_installed_is_named(
    topology: str, module: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        topologies.importlib.util, "find_spec", lambda name: None if name.startswith(module) else real(name)
    )
    line = refused([*PLAN, topology], capsys)
    for word in words:
        assert word in line, line


@pytest.fixture
def on_fake_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Any topology is the eight fake CPU devices; what is planned is kept in a folder of the test's own."""
    monkeypatch.setattr(topologies, "open_topology", lambda name, slices=1: fake_topology())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


TINY = ["--config", "gpt3-small", "--topology", "v5p:2x2x2", "--model.n_layers", "2", "--model.d_model", "64",
        "--model.n_heads", "4", "--model.n_ctx", "32", "--model.n_vocab", "300", "--model.band_width", "8",
        "--model.dtype", "float32", "--train.batch_tokens", "512", "--train.ramp_tokens", "0"]  # fmt: skip


@pytest.mark.usefixtures("on_fake_devices")
def test_a_plan_is_printed_and_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert front.main(["plan", *TINY, "--parallel.stage", "3"]) == 0
    out, err = capsys.readouterr()
    assert "ZeRO stage 3" in out and "compiling for" in err and "made before" not in err
    (path,) = (tmp_path / "gpt3-jax" / "plans").glob("*.json")
    assert front.main(["plan", *TINY, "--parallel.stage", "3", "--json"]) == 0
    again, err = capsys.readouterr()
    assert "made before" in err
    data: dict[str, Any] = json.loads(again)
    assert data["settings"]["stage"] == 3 and data["fits"] is None

    assert front.main(["plan", *TINY, "--parallel.stage", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["stage"] == 2
    # What cannot be read is made anew.
    path.write_text("{")
    assert front.main(["plan", *TINY, "--parallel.stage", "3"]) == 0
    assert capsys.readouterr().out == out or "ZeRO stage 3" in out


@pytest.mark.usefixtures("on_fake_devices")
def test_a_mesh_that_does_not_divide_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused_after_start(["plan", *TINY, "--parallel.replica", "3"], capsys)
    assert "parallel.replica 3" in line and "8 devices" in line


@pytest.mark.usefixtures("on_fake_devices")
def test_a_search_without_a_device_table_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be ranked" in refused_after_start(["plan", *TINY, "--search"], capsys)


def refused_after_start(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert front.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_topologies_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["plan", "--list-topologies"]) == 0
    out = capsys.readouterr().out
    for example in ("v5p:8x8x8", "v5e:16x16", "v6e:16x16", "h100:64x8", "h200:1x8"):
        assert example in out


def test_the_papers_tables_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["report", "paper"]) == 0
    out = capsys.readouterr().out
    for word in ("ZeRO Table 1", "ZeRO Table 2", "GPT-3 Table D.1", "174,604,259,328", "3.14e+23"):
        assert word in out
    assert front.main(["report", "paper", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["zero_table_1"]) == 18
