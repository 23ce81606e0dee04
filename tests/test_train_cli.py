"""`gpt3-jax train` as a person meets it: what it refuses and how, what it prints, how it is stopped."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny_run import environment, finish, losses, metrics, start, tiny, write_data, write_tokens

from gpt3_jax.cli.main import main
from gpt3_jax.cli.train import same_command
from gpt3_jax.config import to_dict


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def write(folder: Path, text: str, name: str = "my.yaml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def truncated(folder: Path) -> None:
    file = write_tokens(folder / "short", 4000) / "tokens-00000.bin"
    os.truncate(file, file.stat().st_size // 2)


def unfinished(folder: Path) -> None:
    (folder / "text.partial").mkdir()


def wide_ids(folder: Path) -> None:
    np.full(4000, 300, "<u2").tofile(folder / "wide.bin")


def file_in_the_way(folder: Path) -> None:
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").write_text("a file")


def nothing(folder: Path) -> None:
    pass


# What is wrong; arguments after the tiny configuration; what the line says; exit code; what is prepared.
# {d} is a folder of the test's own. --config tiny.yaml comes first unless the arguments begin with "!".
Case = tuple[str, list[str], str, int, Callable[[Path], object]]
BAD: list[Case] = [
    (
        "unknown option",
        ["--train.token", "5"],
        r"unknown option --train\.token; the nearest is --train\.tokens",
        2,
        nothing,
    ),
    (
        "unknown section",
        ["--trian.tokens", "5"],
        r"unknown option --trian\.tokens; the nearest is --train\.tokens",
        2,
        nothing,
    ),
    ("stray word", ["tokens=5"], r"unexpected argument 'tokens=5'; expected options such as", 2, nothing),
    ("option without its value", ["--train.tokens"], r"train\.tokens.*expected", 2, nothing),
    ("word for a number", ["--train.tokens", "many"], r"train\.tokens.*many", 2, nothing),
    ("fraction for a whole number", ["--train.tokens", "1.5"], r"train\.tokens.*1\.5", 2, nothing),
    ("negative tokens", ["--train.tokens", "-5"], r"train\.tokens is -5; expected at least 1", 2, nothing),
    (
        "not one of the choices",
        ["--parallel.stage", "4"],
        r"--parallel\.stage is '4'; expected one of 0, 1, 2, 3$",
        2,
        nothing,
    ),
    (
        "bucket for a folder",
        ["--train.run_dir", "gs://b/run"],
        r"'gs://b/run' is an address; expected .* mount the bucket",
        2,
        nothing,
    ),
    (
        "missing configuration",
        ["!", "--config", "gpt3-smal"],
        r"'gpt3-smal' does not exist; the nearest is gpt3-small",
        2,
        nothing,
    ),
    ("--config without a file", ["!", "--config"], r"--config expects the path of a YAML file", 2, nothing),
    (
        "broken YAML",
        ["--config", "{d}/broken.yaml"],
        r"broken\.yaml' is not valid: line 1: while ",
        2,
        lambda d: write(d, "train: {tokens: [", "broken.yaml"),
    ),
    (
        "unknown key in a file",
        ["--config", "{d}/typo.yaml"],
        r"unknown key 'model\.n_layer'.*nearest is model\.n_layers",
        2,
        lambda d: write(d, "model: {n_layer: 2}", "typo.yaml"),
    ),
    (
        "wrong type in a file",
        ["--config", "{d}/type.yaml"],
        r"d_model.*wide",
        2,
        lambda d: write(d, "model: {d_model: wide}", "type.yaml"),
    ),
    (
        "heads that do not divide the width",
        ["--model.n_heads", "3"],
        r"d_model 16 is not divisible by model\.n_heads 3",
        2,
        nothing,
    ),
    (
        "half a sequence in a batch",
        ["--train.batch_tokens", "100"],
        r"batch_tokens 100 is not a whole number of sequences.*96 and 112",
        2,
        nothing,
    ),
    (
        "batch that the mesh does not divide",
        ["--train.batch_tokens", "64"],
        r"4 sequences.*8 data shards.*128",
        2,
        nothing,
    ),
    (
        "microbatch that does not divide",
        ["--train.batch_tokens", "512", "--memory.microbatch", "3"],
        r"microbatch 3 does not divide the 4 ",
        2,
        nothing,
    ),
    ("more mesh than devices", ["--parallel.data", "16"], r"data 16 .* = 16 devices, but 8 are at hand", 2, nothing),
    (
        "tensor axis that divides nothing",
        ["--parallel.data", "2", "--parallel.tensor", "4"],
        r"n_heads 2 is not divisible by parallel\.tensor 4",
        2,
        nothing,
    ),
    (
        "dimension that ZeRO cannot split",
        ["--parallel.stage", "3", "--model.d_model", "20"],
        r"of size 20 does not divide over mesh axes data 8",
        2,
        nothing,
    ),
    (
        "an MLP in parts where it is not gathered",
        ["--memory.mlp_parts", "4"],
        r"mlp_parts is 4 with parallel\.stage \d and memory\.remat \w+; expected 1 there",
        2,
        nothing,
    ),
    (
        "parts that do not divide an MLP",
        ["--parallel.stage", "3", "--memory.remat", "full", "--memory.mlp_parts", "3"],
        r"mlp_parts is 3, which does not divide a device's \d+ of the MLP's \d+ hidden units",
        2,
        nothing,
    ),
    (
        "ramp above the full batch",
        ["--train.ramp_tokens", "1000"],
        r"ramp_start_tokens 32768 is above train\.batch_tokens 128",
        2,
        nothing,
    ),
    (
        "ramp of one stage",
        ["--train.ramp_tokens", "1000", "--train.ramp_start_tokens", "16", "--train.ramp_sizes", "1"],
        r"ramp_sizes is 1; a ramp has at least 2",
        2,
        nothing,
    ),
    (
        "decay that ends in the warm-up",
        ["--optimizer.decay_tokens", "10"],
        r"decay_tokens 10 is not after optimizer\.warmup_tokens 256",
        2,
        nothing,
    ),
    (
        "vocabulary too small",
        ["--model.n_vocab", "256"],
        r"bytes has 257 tokens, model\.n_vocab is 256; set",
        2,
        nothing,
    ),
    (
        "unknown tokenizer",
        ["--data.tokenizer", "gpt5"],
        r"tokenizer 'gpt5' is neither r50k_base, bytes, nor",
        2,
        nothing,
    ),
    (
        "data that does not exist",
        ["--data.train", "[{{path: {d}/nowhere}}]"],
        r"nowhere does not exist; expected a folder of token shards",
        2,
        nothing,
    ),
    (
        "text that was not tokenized",
        ["--data.train", "[{{path: {d}/book.txt}}]"],
        r"book\.txt is a file but not a \.bin .* data tokenize",
        2,
        lambda d: write(d, "text", "book.txt"),
    ),
    (
        "tokenization that did not finish",
        ["--data.train", "[{{path: {d}/text}}]"],
        r"tokenization did not finish",
        2,
        unfinished,
    ),
    (
        "truncated shard",
        ["--data.train", "[{{path: {d}/short}}]"],
        r"tokens-00000\.bin has \d+ bytes where the index says \d+",
        1,
        truncated,
    ),
    (
        "token ids that the model does not have",
        ["--data.train", "[{{path: {d}/wide.bin}}]", "--data.eval", "[]"],
        r"token id 300.*vocabulary ends at 256",
        2,
        wide_ids,
    ),
    (
        "less text than a sequence",
        ["--model.n_ctx", "4096", "--train.batch_tokens", "32768"],
        r"fewer than one sequence of n_ctx \+ 1 = 4097",
        2,
        nothing,
    ),
    (
        "weight of zero",
        ["--data.train", "[{{path: a, weight: 0}}]"],
        r"weight of source 'a' is 0.*more than 0",
        2,
        nothing,
    ),
    (
        "held-out data without training data",
        ["--data.train", "[]"],
        r"data\.eval is set but data\.train is empty",
        2,
        nothing,
    ),
    (
        "no data",
        ["!", "--config", "gpt3-small", "--train.run_dir", "{d}/run"],
        r"data\.train is empty; give at least one source|could not be fetched",
        2,
        nothing,
    ),
    (
        "more tokens than can be counted",
        ["--train.tokens", "1e12"],
        r"more than 2\*\*32 sequences of model\.n_ctx 16",
        2,
        nothing,
    ),
    (
        "processes without a coordinator",
        ["--distributed.mode", "manual"],
        r"distributed\.coordinator is ''; expected HOST:PORT",
        2,
        nothing,
    ),
    (
        "process without its mode",
        ["--distributed.process_id", "1"],
        r"process_id is set but distributed\.mode is 'auto'",
        2,
        nothing,
    ),
    ("run folder that is a file", [], r"cannot write into .*run: File exists; choose another", 1, file_in_the_way),
]
assert len(BAD) >= 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens/web", r"--data\.train is 'tokens/web'; expected a list such as \[\{path: FOLDER, weight: 1\.0\}\]"),
        ("[tokens/web]", r"--data\.train\[0\] is 'tokens/web'; expected e\.g\. \{path: FOLDER"),
        ("[{path: a, wieght: 1}]", r"unknown key --data\.train\[0\]\.wieght; the keys are path, weight, dtype"),
        ("[{path: a", r"--data\.train '\[\{path: a' is not a list: line 1: .*; expected a list"),
    ],
)
def test_sources_on_the_command_line(text: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data.train", text]) == 2
    assert main(["train", f"--data.train={text}"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == second and re.search(message, first), first


def test_a_folder_in_use_is_refused(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process holds the folder; when it is killed, the folder is free."""
    config = tiny(data, tmp_path / "run", parallel={"data": -1}, train={"batch_tokens": 128})
    written = write(tmp_path, yaml.safe_dump(to_dict(config)), "tiny.yaml")
    (tmp_path / "run").mkdir()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys, time; from gpt3_jax.cluster.run_lock import RunLock\n"
            "with RunLock(pathlib.Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(600)",
            str(tmp_path / "run"),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert main(["train", "--config", written]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert re.search(rf"run is in use by another run \(process {holder.pid} on .*\); wait for it", line), line
        assert not (tmp_path / "run" / "checkpoints").exists()
    finally:
        holder.kill()
        holder.wait()
    assert main(["train", "--config", written]) == 0


def refused(folder: Path, data: Path, case: Case, capsys: pytest.CaptureFixture[str]) -> str:
    """Runs one of `BAD`; its line."""
    _, arguments, expected, code, prepare = case
    prepare(folder)
    config = tiny(data, folder / "run", parallel={"data": -1}, train={"batch_tokens": 128})
    written = write(folder, yaml.safe_dump(to_dict(config)), "tiny.yaml")
    argv = [argument.format(d=folder) for argument in arguments]
    argv = argv[1:] if argv[:1] == ["!"] else ["--config", written, *argv]
    assert main(["train", *argv]) == code
    err = capsys.readouterr().err
    *before, line = err.splitlines()
    assert line.startswith("gpt3-jax: error: ") and re.search(expected, line), err
    assert "Traceback" not in err and not any("error" in earlier for earlier in before), err
    return line


@pytest.mark.parametrize("case", BAD, ids=[case[0] for case in BAD])
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path, data: Path, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(tmp_path, data, case, capsys)
    if case[3] == 2:  # known before anything was begun
        assert not (tmp_path / "run").exists()


def test_the_quickstart_writes_nothing_before_its_configuration_is_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--train.run_dir", str(tmp_path / "run"), "--train.batch_tokens", "256"]) == 2
    assert "8 data shards" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------------------------------------------------------
# What it prints
# ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [80, 120])
def test_help_explains_each_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    from gpt3_jax.config import known_keys

    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for key in known_keys():
        assert re.search(rf"^  --{re.escape(key)} ", text, re.MULTILINE), key
        entry = text[text.index(f"  --{key} ") :].split("\n  --")[0]
        assert re.search(r"\n +default: ", entry) or key == "distributed.coordinator", entry
    assert "143" in text and "--verify-recipe" in text and "(type:" not in text and ".help" not in text
    assert len(text.split("\n\n")[0].splitlines()) <= 4  # the usage is not a wall
    sections = [line for line in text.splitlines() if not line.startswith(" ") and line.endswith(":")]
    assert all(len(line) <= columns for line in text.splitlines() if line not in sections)


def test_print_config_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config", "gpt3-xl", "--train.seed", "3", "--print-config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert values["model"]["d_model"] == 2048 and values["train"]["seed"] == 3


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ([], "gpt3-jax train --train.tokens 20"),
        (["--train.tokens", "10"], "gpt3-jax train --train.tokens 20"),
        (["--train.tokens=10", "--config", "a b.yaml"], "gpt3-jax train --config 'a b.yaml' --train.tokens 20"),
        (["--train.tokens", "5", "--model.d_model=8", "--train.tokens", "10"],
         "gpt3-jax train --model.d_model=8 --train.tokens 20"),
    ],
)  # fmt: skip
def test_a_printed_command_has_each_option_once(argv: list[str], command: str) -> None:
    assert same_command(argv, tokens="20") == command


def test_the_commands_that_come_next(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny(data, tmp_path / "run", parallel={"data": 8}, train={"batch_tokens": 128, "tokens": 256})
    written = write(tmp_path, yaml.safe_dump(to_dict(config)), "tiny.yaml")
    assert main(["train", "--config", written, "--train.tokens", "128"]) == 0
    out = capsys.readouterr().out
    assert f"trained on 128 tokens; checkpoints in {tmp_path}/run/checkpoints" in out
    assert f"gpt3-jax generate {tmp_path}/run --prompt 'The '" in out
    longer = f"train --config {written} --train.tokens 256"
    assert f"gpt3-jax {longer} " in out
    assert main(longer.split()) == 0  # what is printed can be typed
    assert list(losses(tmp_path / "run")) == [128, 256]


# ---------------------------------------------------------------------------------------------------------------
# Real processes: signals, a full disk, a terminal
# ---------------------------------------------------------------------------------------------------------------


def wait_for_steps(run_dir: Path, process: subprocess.Popen[str], steps: int = 3) -> None:
    deadline = time.monotonic() + 300
    while not (run_dir / "metrics.jsonl").exists() or len(losses(run_dir)) < steps:
        assert time.monotonic() < deadline and process.poll() is None, finish(process)
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_prints_the_line_to_resume(
    tmp_path: Path, data: Path, number: signal.Signals, code: int
) -> None:
    config = tiny(data, tmp_path / "run", train={"tokens": 10**8, "eval_tokens": 10**8})
    process = start(config, tmp_path / "tiny.yaml", "--train.nonfinite", "skip")
    wait_for_steps(tmp_path / "run", process)
    process.send_signal(number)
    found, out, err = finish(process)
    assert found == code, err
    last = list(losses(tmp_path / "run"))[-1]
    assert (tmp_path / "run" / "checkpoints" / f"tokens-{last}").is_dir()
    resume = f"gpt3-jax train --config {tmp_path / 'tiny.yaml'} --train.nonfinite skip"
    assert err.splitlines()[-2:] == [f"stopped by {number.name} at {last:,} tokens; resume with", f"  {resume}"]
    assert out == "" and "Traceback" not in err


def test_a_disk_that_fills_up_is_one_line_and_leaves_the_checkpoints(tmp_path: Path, data: Path) -> None:
    """A limit on the size of files is as real to the one who writes; metrics.jsonl is what grows into it."""
    config = tiny(
        data, tmp_path / "run", train={"tokens": 10**7, "eval_tokens": 10**8}, checkpoint={"every_tokens": 640}
    )
    limit = 400_000  # above every file of a checkpoint
    file = tmp_path / "tiny.yaml"
    before = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / "metrics.jsonl").open("w") as lines:  # a long run's worth
        while lines.tell() < limit - 10_000:
            lines.write(json.dumps({"kind": "eval", "tokens": 0, "loss": 1.0}) + "\n")
    code, _, err = finish(start(config, file, before=before))
    assert code == 1, err
    assert re.search(r"^gpt3-jax: error: cannot write .*metrics\.jsonl .*File too large; free space", err, re.MULTILINE)
    assert "Traceback" not in err
    saved = sorted(
        int(path.name.removeprefix("tokens-")) for path in (tmp_path / "run" / "checkpoints").glob("tokens-*0")
    )
    assert saved, err
    code, _, err = finish(start(config, file, "--train.tokens", str(saved[-1] + 64)))
    assert code == 0 and f"at {saved[-1]:,} tokens" in err, err


def test_a_person_at_a_terminal_sees_one_line_kept_up_to_date(tmp_path: Path, data: Path) -> None:
    config = tiny(data, tmp_path / "run", train={"tokens": 4096, "eval_tokens": 2048})
    file = write(tmp_path, yaml.safe_dump(to_dict(config)), "tiny.yaml")
    # A terminal of 80 columns is its stdin, stdout and stderr. (Not `pty.fork`: JAX has threads in this process.)
    terminal, its = pty.openpty()
    env = {**environment(), "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}
    command = [sys.executable, "-m", "gpt3_jax", "train", "--config", file]
    process = subprocess.Popen(command, env=env, stdin=its, stdout=its, stderr=its, start_new_session=True)
    os.close(its)
    seen = b""
    deadline = time.monotonic() + 300
    with contextlib.suppress(OSError):  # Linux's way of saying that the other end is closed
        while time.monotonic() < deadline:
            if select.select([terminal], [], [], 1)[0]:
                chunk = os.read(terminal, 65536)
                if not chunk:
                    break
                seen += chunk
    os.close(terminal)
    assert process.wait(60) == 0, seen.decode()
    text = seen.decode()
    updates = re.findall(r"[\d.]+k?/4\.1k tokens · loss [^\r\n\x1b]*", text)
    assert len(updates) >= 2, text
    assert all(len(update) <= 80 for update in updates[:-1]), updates
    assert text.count("held out at") == 2
    assert "next:" in text.splitlines()[-4]
    assert len(metrics(tmp_path / "run")) == 64 + 2
