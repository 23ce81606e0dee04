"""`gpt3-jax plan` and `report`: what a person gets who asks for something wrong, and what is printed otherwise."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import types
from pathlib import Path
from typing import Any

import jax
import pytest
from compilers import NEEDS_CUDA_PLUGIN
from fake_topologies import fake_topology, small_node
from jax.experimental import topologies as jax_topologies

from gpt3_jax import devices
from gpt3_jax.cli import main as front
from gpt3_jax.config import Config
from gpt3_jax.errors import RunError
from gpt3_jax.plan import cache as plans
from gpt3_jax.plan import search, topologies
from gpt3_jax.plan.receipt import receipt_from_json

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
        ([*PLAN, "v5p:2x2x1", "--keep", "2"], ["--keep 2", "add --search"]),
        ([*PLAN, "v5p:2x2x1", "--minutes", "2"], ["--minutes 2", "add --search"]),
        ([*PLAN, "v5p:2x2x1", "--minutes", "0", "--search"], ["--minutes is 0", "more than 0"]),
        ([*PLAN, "v5p:2x2x1", "--out", "x.yaml"], ["--out x.yaml", "add --search"]),
        ([*PLAN, "v5p:2x2x1", "--search", "--out", __file__], [__file__, "exists"]),
        ([*PLAN, "v5p:2x2x1", "--search", "--out", "no/such/x.yaml"], ["no/such/x.yaml", "does not exist"]),
        (["plan", "--list-topologies", "--config", "gpt3-small"], ["--list-topologies", "leave out --config"]),
        (["report", "zero"], ["needs a topology"]),
        (["report", "zero", "--topology", "v5p:2x2x1", "--compiled", "v5p"], ["--compiled", "report paper"]),
        (["report", "zero", "--topology", "v5p:2x2x1", "--devices", "64"], ["--devices", "report paper"]),
        (["report", "paper", "--topology", "v5p:2x2x1"], ["--topology", "report zero"]),
        (["report", "paper", "--picture", "x.png"], ["--picture", "report zero"]),
        (["report", "paper", "--no-cache"], ["--no-cache", "--compiled"]),
        (["report", "paper", "--devices", "64"], ["--devices", "--compiled"]),
        (["report", "paper", "--reduce-dtype", "bfloat16"], ["--reduce-dtype", "--compiled"]),
        (["report", "published", "--reduce-dtype", "bfloat16"], ["--reduce-dtype", "report paper and report zero"]),
        (["report", "paper", "--compiled", "v5p", "--devices", "8"], ["--devices 8", "64"]),
        (["report", "published", "--no-cache"], ["--no-cache", "report paper and report zero"]),
        (["report", "published", "--model", "gpt3-xl"], ["--model", "report zero"]),
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
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith(module) else real(name))
    line = refused([*PLAN, topology], capsys)
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("topology", "message", "words"),
    [
        ("v5e:1x1", "INTERNAL: Failed to open libtpu.so: file too short", ["libtpu, cannot be loaded", "libtpu"]),
        ("v5e:1x1", "JAX TPU support not installed; cannot generate TPU topology", ["libtpu, cannot be loaded"]),
        ("h100:1x1", "topology not implemented for cuda", ["CUDA plugin, cannot be loaded", "jax[cuda13]"]),
    ],
)
def test_a_compiler_that_cannot_be_loaded_is_named(
    topology: str,
    message: str,
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The messages are those of JAX with a damaged libtpu, a libtpu that cannot be imported, and no CUDA plugin."""

    def fail(**_: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(jax_topologies, "get_topology_desc", fail)
    line = refused([*PLAN, topology], capsys)
    for word in [*words, message, "pip install"]:
        assert word in line, line


@NEEDS_CUDA_PLUGIN
def test_cudnn_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As JAX says it. Where cuDNN is not installed, this is what happens without the patch too."""

    def without(*_: object, **__: object) -> None:
        raise RuntimeError("cuDNN not found.")

    monkeypatch.setattr(jax.nn, "dot_product_attention", without)
    assert front.main(["plan", *TINY, "--no-cache", "--topology", "h100:1x1", "--model.dtype", "bfloat16"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    for word in ("needs NVIDIA's libraries", "cuDNN not found", "pip install 'jax[cuda13]'"):
        assert word in last, last


def test_names_of_topologies_are_the_same_in_capitals(monkeypatch: pytest.MonkeyPatch) -> None:
    described = types.SimpleNamespace(devices=jax.devices())
    asked: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def get(topology_name: str, **words: Any) -> Any:
        asked.append(topology_name)
        return described

    monkeypatch.setattr(jax_topologies, "get_topology_desc", get)
    assert topologies.open_topology(" V5E:2X4 ").name == topologies.open_topology("v5e:2x4").name == "v5e:2x4"
    assert topologies.open_topology("TPU7x:2x2x1").name == "tpu7x:2x2x1", "two devices a chip"
    assert topologies.open_topology("H100:1X8").name == "h100:1x8"
    assert topologies.open_topology("V5P:2x2x1", 2).name == "2 × v5p:2x2x1"
    assert asked == ["v5e:2x4", "v5e:2x4", "tpu7x:2x2x1", "h100", "v5p:2x2x1"]
    for name, slices in (("v5e:2x2", 1), ("v5e:2x4", 2), ("h100:2x8", 1), ("tpu7x:2x2x2", 1)):
        with pytest.raises(RunError, match=r"describes 8 devices, expected (4|16)"):
            topologies.open_topology(name, slices)


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
    assert "using the cached plan" in err
    data: dict[str, Any] = json.loads(again)
    assert data["settings"]["stage"] == 3 and data["fits"] is None

    assert front.main(["plan", *TINY, "--parallel.stage", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["stage"] == 2
    # What cannot be read is made anew.
    path.write_text("{")
    assert front.main(["plan", *TINY, "--parallel.stage", "3"]) == 0
    anew, err = capsys.readouterr()
    assert "made before" not in err
    # All but the last line, which is how long it took.
    assert anew.splitlines()[:-1] == out.splitlines()[:-1]
    assert receipt_from_json(json.loads(path.read_text())).settings["stage"] == 3


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


def test_the_papers_tables_are_printed_beside_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["report", "paper"]) == 0
    out = capsys.readouterr().out
    for word in ("ZeRO Table 1", "ZeRO Table 2", "ZeRO Figure 1", "GPT-3 Table 2.1", "GPT-3 Table D.1"):
        assert word in out
    lines = [line.split() for line in out.splitlines()]
    assert ["4", "52.5", "52.5", "41.25", "41.3", "30", "30"] in lines
    assert ["gpt3-175b", "174,604,259,328", "174,600", "3.1429e+23", "3.14E+23", "3,638", "3.64E+03"] in lines
    assert front.main(["report", "paper", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {name: len(cells) for name, cells in data.items()} == {
        "zero_table_1": 54, "zero_table_2": 20, "zero_figure_1": 4, "gpt3_table_2_1": 56, "gpt3_table_d1": 24
    }  # fmt: skip


@pytest.mark.usefixtures("on_fake_devices")
def test_a_search_is_advised_only_where_arithmetic_leaves_hope(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert front.main(["plan", *TINY, "--parallel.stage", "1", "--json"]) == 0
    receipt = receipt_from_json(json.loads(capsys.readouterr().out))
    refused = dataclasses.replace(receipt, memory=dataclasses.replace(receipt.memory, refused=True))
    monkeypatch.setattr(plans, "plan", lambda config, topology, cache: (refused, False))
    monkeypatch.setattr(search, "nearest", lambda *args: [])
    said = {}
    for memory in (10**9, 1000):
        machine = small_node(memory)
        monkeypatch.setattr(topologies, "open_topology", lambda name, slices=1, machine=machine: machine)
        assert front.main(["plan", *TINY, "--parallel.stage", "1"]) == 1
        said[memory] = capsys.readouterr().out
    assert "--search looks further" in said[10**9] and "By arithmetic" not in said[10**9]
    assert "--search" not in said[1000] and "By arithmetic no mesh" in said[1000]


def test_the_scripts_take_what_plans_reckon_with() -> None:
    launch = Path(__file__).parent.parent / "launch"
    assert f'"${{XLA_CLIENT_MEM_FRACTION:-{devices.XLA_GPU_FRACTION}}}"' in (launch / "slurm.sbatch").read_text()
    kubernetes = (launch / "kubernetes.yaml").read_text()
    assert f'{{name: XLA_CLIENT_MEM_FRACTION, value: "{devices.XLA_GPU_FRACTION}"}}' in kubernetes


@pytest.mark.usefixtures("on_fake_devices")
def test_compiled_cells_of_table_1_are_in_both_forms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    memory = types.SimpleNamespace(total=12_345_000_000, code=345_000_000)
    receipt = types.SimpleNamespace(memory=memory)
    planned = []

    def pretend(config: Config, topology: object, cache: object) -> tuple[Any, bool]:
        planned.append(config)
        return receipt, False

    monkeypatch.setattr("gpt3_jax.plan.cache.plan", pretend)
    asked = ["report", "paper", "--compiled", "v5p", "--devices", "64"]
    assert front.main(asked) == 0
    out, err = capsys.readouterr()
    rows = [line.split() for line in out.splitlines() if line.startswith("  64 ")]
    assert [row.count("12") for row in rows] == [3, 3, 3] and err.count("compiling") == 9
    assert "gradients reduced in float32" in out, "the default of parallel.reduce_dtype"
    assert front.main([*asked, "--reduce-dtype", "bfloat16"]) == 0
    assert "gradients reduced in bfloat16" in capsys.readouterr().out
    assert {config.parallel.reduce_dtype for config in planned} == {"float32", "bfloat16"}
    assert front.main([*asked, "--json"]) == 0
    for cell in json.loads(capsys.readouterr().out)["zero_table_1"]:
        assert cell["compiled_bytes"] == (12_000_000_000 if cell["devices"] == 64 else None)


@pytest.mark.usefixtures("on_fake_devices")
def test_the_report_of_zeros_stages_says_what_it_assumes(capsys: pytest.CaptureFixture[str]) -> None:
    model = ["report", "zero", "--topology", "v5p:2x2x2", "--model", "gpt3-small"]
    assert front.main(model) == 0
    out = capsys.readouterr().out
    assert "gradients reduced in float32" in out and "gradient shards of stages 2 and 3 in float32" in out
    table = {line.split()[0]: line for line in out.splitlines() if line[:3] in ("  0", "  1", "  2", "  3")}
    assert set(table) == {"0", "1", "2", "3"}
