"""`launch/prove-gpu.sh` and its page. Every figure in this file is invented."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt3_jax import devices
from gpt3_jax.bench import mfu, proof
from gpt3_jax.bench.ceilings import Ceilings
from gpt3_jax.bench.checkpoint import CheckpointTimes
from gpt3_jax.bench.decode import DecodeTimes
from gpt3_jax.bench.loader import LoaderTimes
from gpt3_jax.bench.profile import Operation, Profile, Share
from gpt3_jax.bench.step import StepTimes
from gpt3_jax.bench.timing import Spread
from gpt3_jax.plan.receipt import Flops

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "launch" / "prove-gpu.sh"
H100 = "NVIDIA H100 80GB HBM3"
MACHINE = {
    "platform": "gpu", "device_kind": H100, "host": "Invented 9000", "host_cores": 3, "versions": {"jax": "0.0.1"}
}  # fmt: skip
NUMERICS = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite>
<testcase name="test_the_fused_kernel_is_attention[gpu-64-dense]"><properties>
<property name="takes" value="&quot;cudnn&quot;"/><property name="error" value="[0.00123, 0.00456]"/></properties>
</testcase>
<testcase name="test_two_steps[gpu-float32]"><properties>
<property name="same bits again" value="false"/><property name="at most" value="{&quot;loss&quot;: 1e-05}"/>
</properties><failure message="AssertionError: far&#10;off">long</failure></testcase>
<testcase name="test_a_checkpoint_comes_back[gpu]"><skipped message="JAX has no GPU here but cpu:0"/></testcase>
</testsuite></testsuites>"""


def spread(value: float) -> Spread:
    return Spread.of([value])


def step(seconds: float, remat: str = "none", sequences: int = 8) -> dict[str, Any]:
    """What `bench step --json` prints: through its own types, so that a name that changes is noticed here."""
    flops = Flops(model=3e14, model_dense=4e14, model_visible=3.5e14, device=4e14)
    peaks = [mfu.Peak("H100 SXM's bfloat16 peak × 1", 989.4e12)]
    times = StepTimes(
        loop=spread(seconds), waited=spread(seconds + 0.001), tokens_per_second=sequences * 2048 / seconds, warmup=2,
        trace_seconds=1.0, lower_seconds=1.0, compile_seconds=31.0, memory={"device": 66 * 2**30}, flops=flops,
        peaks=peaks, utilisations=mfu.utilisations(flops, 1, seconds, peaks), note="", loss=9.0,
    )  # fmt: skip
    ran = {"parameters": 1_315_575_808, "remat": remat, "sequences": sequences}
    return {"machine": MACHINE, "ran": ran, "step": dataclasses.asdict(times)}


def plan(seconds: float, sequences: int) -> dict[str, Any]:
    """A kept receipt with other figures."""
    receipt: dict[str, Any] = json.loads((ROOT / "tests" / "receipts" / "gpt3-xl.h100-1x8.json").read_text())
    receipt["batch"]["sequences"], receipt["settings"]["remat"] = sequences, "none"
    receipt["memory"]["total"], receipt["prediction"]["step_seconds"] = 60 * 2**30, seconds
    return receipt


def peer(model: str, rate: float) -> dict[str, Any]:
    return {
        "peer": "nanoGPT", "model": model, "microbatch": 8, "layers": 24, "width": 2048, "context": 2048,
        "parameters": 10**9, "tokens_per_second": rate, "step_seconds": 0.5, "first_step_seconds": 40.0,
        "memory": 70 * 2**30, "device": H100, "torch": "0.0.2",
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a run leaves, its figures invented."""
    ceilings = dataclasses.asdict(Ceilings(matmul_flops=800e12, matmul_size=8192, copy_bytes=3.0e12))
    largest = [Operation("gemm_7", "matmul", Share(0.1, 0.1, 24.0), "bf16[1]", "model/mlp.py:1", "forward")]
    profile = Profile(3, 0.5, {"matmul": Share(0.4, 0.4, 99.0), "idle": Share(0.1, 0.1, 0.0)}, largest)
    decode = DecodeTimes(spread(0.1), 1e5, spread(0.004), 250.0, 1024, 128, 1, 3, 30.0, 2_400_000_000, {})
    loader = LoaderTimes(spread(9e6), 10**9, 2048, 256, [])
    checkpoint = CheckpointTimes(spread(0.25), spread(2.0), spread(1.0), 1_500_000_000, "/tmp")
    documents: dict[str, list[dict[str, Any]]] = {
        "machine": [{"machine": MACHINE, "ceilings": ceilings}],
        "peer-matmul": [{"matmul_flops": 790e12, "matmul_size": 8192, "torch": "0.0.2"}],
        "step-xl": [step(0.5)],
        "step-small": [step(0.25, sequences=16)],
        "profile-xl": [{**step(0.5), "profile": dataclasses.asdict(profile)}],
        "plan-xl": [plan(0.6, 8)],
        "plan-small": [plan(0.6, 32)],
        "peer-xl": [{"peer": "does not fit", "model": "xl", "microbatch": 16}, peer("xl", 16384.0)],
        "decode-xl-1": [{"decode": dataclasses.asdict(decode)}],
        "store-loader": [{"loader": dataclasses.asdict(loader)}],
        "store-checkpoint": [{"checkpoint": dataclasses.asdict(checkpoint)}],
    }
    for name, found in documents.items():
        one = json.dumps(found[0], indent=1) + "\n"
        text = one if len(found) == 1 else "a warning\n" + "".join(json.dumps(d) + "\n" for d in found)
        (tmp_path / f"{name}.out").write_text(text)
    (tmp_path / "numerics.xml").write_text(NUMERICS)
    (tmp_path / "train-quickstart.out").write_text(
        "trained on 9 tokens\nbits per byte:\n  this model 7.0\nnext:\n  more\n"
    )
    (tmp_path / "step-2.7b.log").write_text("compiling\ngpt3-jax: error: out of memory on the device\n")
    (tmp_path / "plan-6.7b.log").write_text("gpt3-jax: error: no compiler\n")
    rows = [(name, "0", "9") for name in documents if not name.startswith("plan")]
    rows += [
        ("numerics", "1", "99"),
        ("step-2.7b", "1", "7"),
        ("step-6.7b", "124", "120"),
        ("store", proof.NO_TIME, "0"),
    ]
    (tmp_path / "stages.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        f"# gpt3_jax on {H100}",
        "Invented 9000, 3 cores; jax 0.0.1, torch 0.0.2",
        "Reached by a bf16 matmul of 8,192³ in JAX 800.0 TFLOP/s, by a bf16 matmul of 8,192³ in PyTorch 790.0 TFLOP/s, "
        "by a copy 3.00 TB/s",
        "## Numerics: 1 of 3 hold",
        "| the fused kernel is attention[gpu-64-dense] | yes | takes cudnn, error 0.0012 0.0046 |",
        "| two steps[gpu-float32] | **NO** | same bits again no, at most (loss 1e-05), AssertionError: far off |",
        "| a checkpoint comes back[gpu] | skipped | JAX has no GPU here but cpu:0 |",
        # 3e14, 4e14 and 3.5e14 in half a second of 989.4 TFLOP/s; and 4e14 of the 800 that the machine reaches.
        "| step-xl | 1.32B | none | 8 | 32,768 | 500 ms | 501 ms | 60.6% | 80.9% | 70.7% | 100.0% | 66.0 | 31 s |",
        "| step-xl | 60.0 | 66.0 | 600 ms (+20%) |",
        "| step-small | of another batch |",
        "- plan-6.7b: no plan: gpt3-jax: error: no compiler",
        "| xl | does not fit | 16 |",
        # 16,384 × (6e9 and 6e9 + 12 × 24 × 2048 × 2048) of 989.4 TFLOP/s.
        "| xl | nanoGPT | 8 | 16,384 | 500 ms | 9.9% | 11.9% | 70.0 | 40.0 s |",
        "- step-xl: 2.00 × the peer's best",
        "- profile-xl, traced steps of 500 ms: matmul 80.0%, idle 20.0%",
        "  - gemm_7 100 ms (matmul, model/mlp.py:1)",
        "- decode-xl-1: 250 tokens/s, a token in 4.00 ms (weights read at 0.60 TB/s), prompts 100,000 tokens/s",
        "- store-loader: 9 million tokens/s",
        "- train-quickstart: trained on 9 tokens bits per byte: this model 7.0",
        "- store-checkpoint: 1.50 GB, training waits 250 ms, on disk after 2.00 s, restored in 1.00 s",
        "- not reached: store",
        "- **step-2.7b**: exit code 1, 7 s: gpt3-jax: error: out of memory on the device",
        "- **step-6.7b**: ended after its time limit, 120 s: it said nothing",
    ],
)
def test_the_page_has_every_figure(folder: Path, line: str) -> None:
    assert f"\n{line}" in "\n" + proof.summary(folder)


def test_a_part_that_cannot_be_read_is_named_and_the_others_are_shown(folder: Path) -> None:
    (folder / "numerics.xml").write_text("<testsuites><testsuite>")
    (folder / "peer-xl.out").write_text(json.dumps({"model": "xl", "tokens_per_second": 5.0}))
    (folder / "step-small.out").write_text('{"machine": ')  # ended while it was writing
    page = proof.summary(folder)
    assert "numerics could not be read: ParseError" in page
    assert "the peer could not be read: KeyError" in page
    assert "| step-xl | 1.32B |" in page
    assert "| step-small | 1.32B |" not in page


def test_the_first_page_of_a_run_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "stages.tsv").write_text("machine\t1\t5\n")
    page = proof.summary(tmp_path)
    assert "an unknown device" in page
    assert page.count("nothing measured") == 4
    assert "could not be read" not in page


def test_the_script_is_valid_bash_and_takes_what_plans_reckon_with() -> None:
    subprocess.run(["bash", "-n", SCRIPT], check=True)
    text = SCRIPT.read_text()
    assert f'"${{XLA_CLIENT_MEM_FRACTION:-{devices.XLA_GPU_FRACTION}}}"' in text
    planned = re.findall(r'"(NVIDIA .*)"\) topology=(\w+):1x1', text)
    assert {name: target.upper() in str(devices.lookup(name)) for name, target in planned} == dict.fromkeys(
        (kind for kind in devices.known() if kind.startswith("NVIDIA")), True
    )


def script(out: Path, *stages: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "TINY", "BUDGET", "OUT")}
    env |= {"PYTHON": sys.executable, "OUT": str(out), **variables}
    return subprocess.run(
        ["bash", SCRIPT, *stages], env=env, cwd=out.parent, capture_output=True, text=True, timeout=1800, check=False
    )


def test_without_time_nothing_begins_and_the_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "stages.tsv").write_text("machine\t0\t5\n")
    done = script(tmp_path / "out", TINY="1", BUDGET="0")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "summary.md").read_text()
    assert page == done.stdout
    assert "- done: machine 5 s\n- not reached: peer-matmul, numerics, step-xl, step-small, peer-small" in page


@pytest.mark.slow
def test_the_script_measures_goes_on_and_repeats(tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = script(out, "machine", "numerics", "step-xl", TINY="1", BUDGET="1500")
    assert done.returncode == 0, done.stderr
    assert "| step-xl on a cpu | 0.00B | none | 2 |" in done.stdout
    assert "## Numerics: 7 of 7 hold" in done.stdout
    # A second call has nothing to repeat but what it is told to, and a failure stops no other stage.
    again = script(out, "peer-matmul", "store-loader", TINY="1", TORCH_PYTHON="false")
    assert again.returncode == 1
    assert "**peer-matmul**: exit code 1" in again.stdout
    assert "- store-loader: " in again.stdout and "| step-xl on a cpu |" in again.stdout


@pytest.mark.slow
def test_where_jax_has_no_gpu_the_script_ends_at_once(tmp_path: Path) -> None:
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    done = script(tmp_path / "out")
    assert done.returncode == 3
    assert "prove-gpu.sh: no GPU to measure: " in done.stderr
    assert "numerics" not in done.stderr
