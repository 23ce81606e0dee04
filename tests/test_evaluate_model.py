"""`gpt3-jax evaluate` and `gpt3_jax.evals.evaluate` with a checkpoint on disk, on one device and on a mesh."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import SHARED, finish
from xla_flags import xla_flags

import gpt3_jax
from gpt3_jax.cli import main as front
from gpt3_jax.config import Config, ParallelConfig, from_dict, to_dict
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import loading
from gpt3_jax.evals.evaluation import ITEMS
from gpt3_jax.evals.kept import FILE
from gpt3_jax.evals.results import RESULTS
from gpt3_jax.evals.subject import Subject
from gpt3_jax.interop.loading import load_model
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.checkpoint.trained import Trained, load_trained
from gpt3_jax.train.state import init_state

CTX = 128
MODEL = {
    "n_layers": 1, "attention_pattern": ["dense"], "d_model": 16, "n_heads": 2, "n_ctx": CTX, "n_vocab": 257,
    "vocab_multiple": 16, "init_std": 0.5, "dtype": "float32",
}  # fmt: skip
QUESTIONS = [
    {"stem": ["bird", "flock"], "choices": [["leaf", "tree"], ["wolf", "pack"], ["cow", "herd"]], "answer": 1},
    {"stem": ["hand", "glove"], "choices": [["foot", "sock"], ["door", "key"]], "answer": 0},
    {"stem": ["cat", "kitten"], "choices": [["dog", "bone"], ["cow", "calf"]], "answer": 1},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has just begun, with random parameters, and task files."""
    folder = tmp_path_factory.mktemp("made")
    values = to_dict(Config())
    values["model"] |= MODEL
    values["data"]["tokenizer"] = "bytes"
    values["parallel"]["data"] = 1
    config = from_dict(values)
    state = init_state(config, make_mesh(config.parallel, jax.devices()[:1]))
    store = CheckpointStore(folder / "run" / "checkpoints", keep_last=1, keep_every_tokens=0)
    store.save(0, 0, state, {"config": values}, wait=True)
    (folder / "sat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    (folder / "book.txt").write_text("A text of more bytes than fit into the context of this model. " * 5)
    return folder


def tasks(made: Path) -> list[str]:
    return [f"analogies:{made / 'sat.jsonl'}", f"text:{made / 'book.txt'}", "two_digit_addition"]


SETTINGS = ["max_tokens=3", "items=4", "decoding=greedy"]  # other tests are about beams


@functools.cache
def plain(run: Path) -> tuple[Trained, Callable[..., jax.Array]]:
    """The checkpoint, read once, and the model's plain forward pass, compiled once: rows are filled up to the
    context, and what fills them comes after every token and is seen by none."""
    return load_trained(run), jax.jit(gpt3_jax.model.forward, static_argnums=2)


def logprobs(made: Path, context: str, continuation: str) -> np.ndarray:
    """Of each byte of the continuation, by the model's plain forward pass."""
    trained, forward = plain(made / "run")
    ids = ByteTokenizer().encode(context + continuation)
    row = np.zeros((1, CTX), np.int32)
    row[0, : len(ids)] = ids
    of_next = np.asarray(jax.nn.log_softmax(forward(trained.params, row, trained.config.model)[0].astype(jnp.float32)))
    n = len(continuation.encode())
    return np.array([of_next[i - 1, ids[i]] for i in range(len(ids) - n, len(ids))])


def test_a_checkpoint_is_evaluated_as_the_plain_model_says(made: Path, tmp_path: Path) -> None:
    results = gpt3_jax.evals.evaluate(made / "run", tasks(made), (0, 1), out=tmp_path, settings=SETTINGS)
    records = [json.loads(line) for line in (tmp_path / ITEMS).read_text().splitlines()]
    choices = [record for record in records if record["task"] == "analogies:sat.jsonl"]
    assert len(choices) == 6
    for record in choices:
        (prompt,) = record["prompts"]
        expected = [logprobs(made, prompt, f" {choice}") for choice in record["choices"]]
        np.testing.assert_allclose(record["compared"], [each.mean() for each in expected], rtol=1e-4)
        assert record["chosen"] == int(np.argmax([each.mean() for each in expected]))
    loss = next(cell for cell in results.cells if cell.metric == "loss per token")
    bits = next(cell for cell in results.cells if cell.metric == "bits per byte")
    assert bits.value == pytest.approx(loss.value / math.log(2)), "a token is a byte"
    generated = [record for record in records if record["task"] == "two_digit_addition"]
    assert len(generated) == 8 and all(len(record["generated"].encode()) <= 9 for record in generated)
    data = json.loads((tmp_path / RESULTS).read_text())
    assert data["models"][0]["name"] == "run" and len(data["models"][0]["weights"]) == 64
    assert data["models"][0]["parameters"] == gpt3_jax.model.count_params(load_trained(made / "run").config.model)


def test_an_engine_is_freed_before_the_next_model_is_loaded(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[weakref.ref[object]] = []

    def load(*args: object) -> Subject:
        assert all(engine() is None for engine in engines)
        subject = loading_load(*args)  # type: ignore[arg-type]
        engines.append(weakref.ref(subject.answer.__self__))  # type: ignore[attr-defined]
        return subject

    loading_load = loading.load
    monkeypatch.setattr(loading, "load", load)
    gpt3_jax.evals.evaluate([made / "run"] * 2, [tasks(made)[0], "two_digit_addition"], [1], settings=SETTINGS)
    assert len(engines) == 2


def test_all_folders_are_looked_at_before_the_first_is_evaluated(made: Path, tmp_path: Path, said: list[str]) -> None:
    with pytest.raises(UserError, match="holds no checkpoint of a run"):
        gpt3_jax.evals.evaluate([made / "run", tmp_path], "two_digit_addition", shots=[0], limit=1)
    assert not any("requests" in line for line in said)


def test_a_mesh_gives_the_same(made: Path) -> None:
    one = gpt3_jax.evals.evaluate(made / "run", tasks(made)[:2], (0, 1))
    parallel = ParallelConfig(data=2, tensor=2, replica=2, stage=3)
    meshed = gpt3_jax.evals.evaluate(made / "run", tasks(made)[:2], (0, 1), parallel=parallel)
    assert [cell.value for cell in meshed.cells] == pytest.approx([cell.value for cell in one.cells], rel=1e-4)


def test_the_cost_of_int8_weights_is_measured(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", str(made / "run"), "--tasks", tasks(made)[1], "--json", "--out", str(tmp_path)]
    bits = {}
    for weights in ("float32", "int8"):
        assert front.main([*line, "--weights", weights]) == 0
        captured = capsys.readouterr()
        assert f"weights in {weights}: " in captured.err and "0 requests, " not in captured.err
        found = json.loads(captured.out)
        assert found["models"][0]["engine"].get("weights") == ("int8" if weights == "int8" else None)
        (bits[weights],) = (cell["value"] for cell in found["cells"] if cell["metric"] == "bits per byte")
    assert 0 < abs(bits["int8"] - bits["float32"]) < 0.02 * bits["float32"]
    with pytest.raises(UserError, match="weights is 'int4'; expected float32, bfloat16, int8, or none"):
        gpt3_jax.evals.evaluate(made / "run", tasks(made)[1], weights="int4")  # type: ignore[arg-type]


def test_the_command_prints_a_table_and_json(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["evaluate", str(made / "run"), "--tasks", tasks(made)[0], "--shots", "0,max", "--out", str(tmp_path)]
    assert front.main(line) == 0
    table = capsys.readouterr().out
    assert "analogies:sat.jsonl  accuracy  max" in table and "44.44" in table, table
    assert front.main([*line, "--json", "--parallel.data", "8"]) == 0
    captured = capsys.readouterr()
    written = json.loads(captured.out)
    assert written["cells"][1]["shots"] == "max"
    engine = written["models"][0]["engine"]
    assert (engine["platform"], engine["mesh"], engine["stage"]) == ("cpu", {"replica": 1, "data": 8, "tensor": 1}, 1)
    assert "0 requests, " in captured.err, "the mesh changes no answer, so those kept are taken"


def test_a_prompt_is_shown_with_the_models_own_tokenizer(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["evaluate", str(made / "run"), "--show", "two_digit_addition", "--shots", "max"]) == 0
    captured = capsys.readouterr()
    assert "K = 2: 90 tokens of bytes, in a context of 128" in captured.err
    assert captured.out.count("Q: What is") == 3


@pytest.mark.parametrize("kind", ["run", "hf"])
def test_a_prompt_is_shown_without_reading_weights(
    kind: str, made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """There are none: the folders that held them are gone, or their file is empty."""
    if kind == "run":
        shutil.copytree(made / "run", tmp_path / "model")
        for folder in [*(tmp_path / "model" / "checkpoints").rglob("d")]:  # of the arrays, not of what describes them
            shutil.rmtree(folder)
        context = 128
    else:
        pytest.importorskip("safetensors", reason="needs the hf extra")
        config = gpt3_jax.preset("gpt3-small").model
        config = dataclasses.replace(
            config, n_layers=1, attention_pattern=("dense",), d_model=16, n_heads=2, n_ctx=256, n_vocab=257
        )
        gpt3_jax.interop.to_hf(gpt3_jax.model.init(config, jax.random.key(0)), config, tmp_path / "model")
        (weights,) = (tmp_path / "model").glob("*.safetensors")
        weights.write_bytes(b"")
        printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
        characters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(256 - len(printable))]
        ids = {character: i for i, character in enumerate([*characters, "<|endoftext|>"])}
        (tmp_path / "model" / "vocab.json").write_text(json.dumps(ids))
        (tmp_path / "model" / "merges.txt").write_text("#version: 0.2\n")
        context = 256
    with pytest.raises((RunError, UserError)):
        load_model(tmp_path / "model")
    assert front.main(["evaluate", str(tmp_path / "model"), "--show", "two_digit_addition", "--shots", "1"]) == 0
    assert f"in a context of {context}" in capsys.readouterr().err


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint of a run"):
        gpt3_jax.evals.evaluate(tmp_path, "two_digit_addition")


def test_a_killed_evaluation_goes_on_where_it_stopped(made: Path, tmp_path: Path) -> None:
    """Killed in a real process, while it writes an answer."""
    out = tmp_path / "out"
    program = f"""
import os, signal
from gpt3_jax.evals import kept
from gpt3_jax.cli.main import main
count, write = 0, kept.KeptAnswers.add
def add(self, request, answer):
    global count
    count += 1
    write(self, request, answer)
    if count == 5:
        self._file.write(b'{{"key": "abc", "ans')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
kept.KeptAnswers.add = add
main(["evaluate", {str(made / "run")!r}, "--tasks", {tasks(made)[0]!r}, "--shots", "0,1", "--out", {str(out)!r}])
"""
    env = {**os.environ, **SHARED}
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, env=env).returncode == -9
    assert (out / FILE).read_bytes().count(b"\n") == 5 and not (out / RESULTS).exists()
    again = gpt3_jax.evals.evaluate(made / "run", tasks(made)[0], (0, 1), out=out)
    whole = gpt3_jax.evals.evaluate(made / "run", tasks(made)[0], (0, 1))
    assert again.cells == whole.cells
    lines = (out / FILE).read_text().splitlines()
    keys = {json.loads(line)["key"] for line in lines}
    assert len(lines) == len(keys) == 14, "7 choices, with 0 and 1 demonstrations"


@pytest.mark.slow
def test_two_processes_evaluate_as_one_and_go_on_together(made: Path, tmp_path: Path) -> None:
    """Four devices each. Half of the answers are there before, in the file that both read."""
    settings = ["max_tokens=2", "items=3"]
    names = [tasks(made)[0], "two_digit_addition"]
    one = gpt3_jax.evals.evaluate(made / "run", names, (0, 1), settings=settings, out=tmp_path / "one")
    lines = (tmp_path / "one" / FILE).read_text().splitlines(keepends=True)
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / FILE).write_text("".join(lines[: len(lines) // 2]))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(4),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-m", "gpt3_jax", "evaluate", str(made / "run"), "--tasks", ",".join(names)]
    command += [*(part for each in settings for part in ("--set", each)), "--shots", "0,1", "--out"]
    command += [str(tmp_path / "two"), "--parallel.tensor", "2", "--parallel.stage", "3", "--distributed.mode"]
    command += ["manual", "--distributed.coordinator", f"127.0.0.1:{port}", "--distributed.processes", "2"]
    processes = [
        subprocess.Popen(
            [*command, "--distributed.process_id", str(rank)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    (code, out, err), (other_code, other_out, other_err) = (finish(process) for process in processes)
    assert (code, other_code) == (0, 0), err + other_err
    assert "detectable" in out and "detectable" not in other_out, "the lead process prints"
    assert "more were answered before" in err
    records = [
        [json.loads(line) for line in (tmp_path / name / ITEMS).read_text().splitlines()] for name in ("one", "two")
    ]
    assert len(records[0]) == len(records[1]) == sum(cell.items for cell in one.cells)
    for mine, theirs in zip(*records, strict=True):
        assert (mine["prompts"], mine.get("generated")) == (theirs["prompts"], theirs.get("generated"))
        np.testing.assert_allclose(mine.get("compared", []), theirs.get("compared", []), rtol=1e-4)
