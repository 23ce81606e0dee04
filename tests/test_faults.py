"""Every place of the table in `faults` made to fail, in every command: one line, and nothing lost or half there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import yaml
from faults import GOES_ON, LATE, NO_REASON, STOPS, Injector, Place, table
from tiny_run import SHARED, tiny, write_tokens

from gpt3_jax.cli.main import main
from gpt3_jax.config import to_dict

COMMANDS = {
    "train": "train --config {d}/run.yaml --train.run_dir {d}/run --train.tokens 256 --checkpoint.keep_last 1",
    "generate": "generate {d}/run --prompt a --max-tokens 2",
    "evaluate": "evaluate {d}/run --tasks {d}/pairs.jsonl --shots 0 --set max_tokens=2 --set decoding=greedy "
    "--out {d}/evals",
    "data tokenize": "data tokenize {d}/book.txt --out {d}/shards --tokenizer bytes --workers 1",
    "data inspect": "data inspect {d}/tokens --verify",
    "data languages": "data languages {d}/book.txt --out {d}/languages --workers 1",
    "contamination": "contamination {d}/book.txt --tasks {d}/pairs.jsonl --n 1 --out {d}/found --workers 1",
    "memorisation": "memorisation {d}/book.txt --samples {d}/sample.txt --least 2 --out {d}/matches --workers 1",
    "bench loader": "bench loader {d}/tokens --batches 1 --repeat 1 --batch 2 --n-ctx 16",
    "convert to-hf": "convert to-hf {d}/run {d}/hf2",
    "convert from-hf": "convert from-hf {d}/hf {d}/run2 --tokenizer bytes",
}
QUICK = ("data tokenize", "data inspect", "data languages", "contamination", "memorisation", "bench loader")
KEPT_PARTS = {
    "train": ("run/checkpoints/tokens-256/",),
    "data tokenize": ("shards.partial/", "shards/"),
    "evaluate": ("evals/",),
    "data languages": ("languages/languages_by_document_count.csv", "languages/languages_by_word_count.csv"),
    "contamination": ("found/hits.npz", "found/contamination.jsonl"),
    "memorisation": ("matches/memorisation.jsonl",),
    "convert from-hf": ("run2/config.yaml", "run2/checkpoints/tokens-0/"),
}
"""What a command may leave when it fails: it goes on from there, or writes it again. A checkpoint that was put in its
place and cannot be read back stays: the line says so, and a restore passes over it."""
REWRITTEN = ("run/run.lock", "run/config.yaml", "run/metrics.", "run/tensorboard/")


@pytest.fixture(scope="module")
def injector() -> Injector:
    return Injector()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, a text, a run with a checkpoint, and the same for Hugging Face where that can be written."""
    folder = tmp_path_factory.mktemp("made")
    write_tokens(folder / "tokens", 4000)
    (folder / "book.txt").write_text("a text\n" * 50)
    (folder / "sample.txt").write_text("what a text a text is\n")
    pairs = ('{"context": "a", "completion": "b"}\n', '{"context": "c", "completion": "d"}\n')
    (folder / "pairs.jsonl").write_text("".join(pairs))
    config = tiny(
        folder,
        folder / "run",
        data={"train": [{"path": str(folder / "tokens")}], "eval": []},
        parallel={"data": 8},
        train={"batch_tokens": 128, "tokens": 128, "tensorboard": True, "eval_tokens": 1024},
    )
    (folder / "run.yaml").write_text(yaml.safe_dump(to_dict(config)))
    return folder


@pytest.fixture(scope="module")
def trained(made: Path) -> Path:
    assert main(["train", "--config", str(made / "run.yaml")]) == 0
    return made


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it all, for this command, which draws no pictures."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command = request.node.callspec.params["command"]
    made: Path = request.getfixturevalue("made" if command in QUICK else "trained")
    if command.startswith("convert"):
        pytest.importorskip("safetensors", reason="needs the hf extra")
        if not (made / "hf").exists():
            assert main(["convert", "to-hf", str(made / "run"), str(made / "hf")]) == 0
    shutil.copytree(made, tmp_path / "copy")
    # The same names inside the configuration.
    text = (made / "run.yaml").read_text().replace(str(made), str(tmp_path / "copy"))
    (tmp_path / "copy" / "run.yaml").write_text(text)
    return tmp_path / "copy"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _cells() -> list[object]:
    cells: list[object] = []
    for command, places in STOPS.items():
        for place in places:
            late = (command, place) in LATE or (place[0] == "mkdir" and command.startswith("convert"))
            marks = [pytest.mark.slow] if late or command.startswith("convert") else []
            cells.append(pytest.param(command, place, marks=marks, id=f"{command}: {' '.join(place)}"))
    return cells


@pytest.mark.parametrize(("command", "place"), _cells())
def test_a_command_that_the_system_fails_ends_in_one_line(
    command: str, place: Place, folder: Path, injector: Injector, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(folder)
    with injector.watch(folder, place, errno.EACCES) as seen:
        code = main(COMMANDS[command].format(d=folder).split())
    assert seen.raised, f"{place} was not met; places that were: {sorted(seen.seen)}"
    err = capsys.readouterr().err
    assert code in (1, 2), err
    *earlier, line = err.splitlines()
    said = "was saved but cannot be read" if (command, place) in NO_REASON else "Permission denied"
    assert line.startswith("gpt3-jax: error: ") and said in line, err
    assert not any("error:" in other or "Traceback" in other for other in earlier), err
    after = files(folder)
    lost = [name for name, content in before.items() if after.get(name) != content and not name.startswith(REWRITTEN)]
    assert not lost
    left = [name for name in after.keys() - before.keys() if not name.startswith(REWRITTEN)]
    assert all(name.startswith(KEPT_PARTS.get(command, ("nothing",))) for name in left), left


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "place"), [(command, place) for command, places in GOES_ON.items() for place in places]
)
def test_a_command_does_without_what_it_does_not_need(
    command: str, place: Place, folder: Path, injector: Injector, capsys: pytest.CaptureFixture[str]
) -> None:
    with injector.watch(folder, place, errno.EACCES) as seen:
        assert main(COMMANDS[command].format(d=folder).split()) == 0
    assert seen.raised, sorted(seen.seen)
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("command", [c if c in QUICK else pytest.param(c, marks=pytest.mark.slow) for c in COMMANDS])
def test_every_place_that_a_command_meets_is_in_the_table(command: str, folder: Path, injector: Injector) -> None:
    with injector.watch(folder) as watched:
        assert main(COMMANDS[command].format(d=folder).split()) == 0
    told = STOPS[command].keys() | GOES_ON.get(command, {}).keys()
    assert watched.seen <= told, f"add to tests/faults.py: {sorted(watched.seen - told)}"


def test_a_failed_command_succeeds_when_the_system_does(folder_tokenize: Path, injector: Injector) -> None:
    """Whatever was left of it."""
    command = COMMANDS["data tokenize"].format(d=folder_tokenize).split()
    for place in STOPS["data tokenize"]:
        if place[1].startswith("shards/"):
            continue  # by then all is in its place
        with injector.watch(folder_tokenize, place):
            assert main(command) == 1
        assert main(command) == 0, place
        shutil.rmtree(folder_tokenize / "shards")


@pytest.fixture
def folder_tokenize(made: Path, tmp_path: Path) -> Path:
    shutil.copy(made / "book.txt", tmp_path / "book.txt")
    return tmp_path


def test_the_table_can_be_printed() -> None:
    lines = table().splitlines()
    assert len(lines) == 1 + sum(len(places) for half in (STOPS, GOES_ON) for places in half.values())


# ---------------------------------------------------------------------------------------------------------------
# Packages
# ---------------------------------------------------------------------------------------------------------------

EXTRAS = {
    "pyarrow": ("data tokenize {d}/x.parquet --out {d}/out --tokenizer bytes", "'.[data]'"),
    "zstandard": ("data tokenize {d}/x.txt.zst --out {d}/out --tokenizer bytes", "'.[data]'"),
    "safetensors": ("convert from-hf {d}/hf {d}/out --tokenizer bytes", "'.[hf]'"),
    "torch": ("convert from-hf {d}/old {d}/out --tokenizer bytes", "'.[hf]'"),
    "matplotlib": ("plan --config gpt3-small --topology v5e:2x2 --picture {d}/x.png", "pip install matplotlib"),
    "libtpu": ("plan --config gpt3-small --topology v5e:2x2", "pip install libtpu"),
}


class _Missing:
    """A finder in front of all others, for which a package is not there."""

    def __init__(self, package: str) -> None:
        self._package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.split(".")[0] == self._package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@pytest.mark.parametrize("package", EXTRAS)
def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    (tmp_path / "x.txt.zst").write_bytes(b"x")
    for name, weights in (("hf", "model.safetensors"), ("old", "pytorch_model.bin")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"model_type": "gpt2"}')
        (tmp_path / name / weights).write_bytes(b"x")
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    finder = _Missing(package)
    if package == "libtpu":  # which is looked for and not imported
        monkeypatch.setattr("gpt3_jax.plan.topologies.importlib.util.find_spec", lambda name: None)
    else:
        monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    command, install = EXTRAS[package]
    assert main(command.format(d=tmp_path).split()) == 2
    err = capsys.readouterr().err
    line = err.splitlines()[-1]
    assert line.startswith("gpt3-jax: error: ") and package in line and install in line, err
    assert "Traceback" not in err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------
# The real thing: system calls that fail
# ---------------------------------------------------------------------------------------------------------------

CALLS = {
    "data tokenize": ("fsync,fdatasync:error=EIO", "rename:error=ENOSPC", "mkdir:error=EROFS"),
    "convert from-hf": ("fsync,fdatasync:error=EIO",),
    "train": ("fsync,fdatasync:error=EIO",),
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which makes system calls fail")
@pytest.mark.parametrize(("command", "calls"), [(command, one) for command, calls in CALLS.items() for one in calls])
def test_a_system_call_that_fails_is_one_line(command: str, calls: str, folder: Path) -> None:
    before = files(folder)
    names = calls.partition(":")[0]
    tracer = ["strace", "-f", "-qq", "-o", os.devnull, "--seccomp-bpf", "-e", f"trace={names}", "-e", f"inject={calls}"]
    path = os.pathsep.join(filter(None, sys.path))
    env = {**os.environ, **SHARED, "PYTHONPATH": path}
    argv = [*tracer, sys.executable, "-m", "gpt3_jax", *COMMANDS[command].format(d=folder).split()]
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("gpt3-jax: error: ") and "Traceback" not in ended.stderr
    after = files(folder)
    assert all(after.get(name) == old for name, old in before.items() if not name.startswith(REWRITTEN))
