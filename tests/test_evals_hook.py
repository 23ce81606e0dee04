"""Tasks evaluated during training: on their cadence, with the trained weights, into the run's metrics."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import CTX, losses, metrics, tiny, write_data

from gpt3_jax import evals, train
from gpt3_jax.config import Config
from gpt3_jax.errors import UserError
from gpt3_jax.evals.engine import Engine

SHAPE = {"n_layers": 2, "attention_pattern": ["dense", "banded"], "n_ctx": 4 * CTX, "band_width": CTX, "n_heads": 2}
TASK = "two_digit_addition"


def config(folder: Path, **sections: Any) -> Config:
    """16 batches of 512 tokens at stage 3 over four data and two tensor shards."""
    data = write_data(folder / "data")
    wanted: dict[str, Any] = {
        "model": SHAPE,
        "train": {"tokens": 8192, "batch_tokens": 512, "eval_tokens": 100_000},
        "parallel": {"data": 4, "tensor": 2, "stage": 3},
        "evals": {"tasks": [TASK], "shots": [0], "every_tokens": 3000, "limit": 3},
    }
    return tiny(data, folder / "run", **{**wanted, **sections})


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of a run with evaluations, and how often its engine let go of the parameters."""
    folder = tmp_path_factory.mktemp("evaluated")
    released: list[Engine] = []
    release = Engine.release

    def counted(engine: Engine) -> None:
        released.append(engine)
        release(engine)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(Engine, "release", counted)
        train.run(config(folder), hooks=[evals.EvaluateTasks])
    return folder / "run", len(released)


def test_tasks_are_evaluated_on_their_cadence_with_the_trained_weights(evaluated: tuple[Path, int]) -> None:
    run, released = evaluated
    lines = [line for line in metrics(run) if line["kind"] == "tasks"]
    # Before the first step, at the first batches past 3,000 and 6,000, and at the end.
    assert [line["tokens"] for line in lines] == [0, 3072, 6144, 8192]
    assert released == len(lines)  # between evaluations the memory is the step's
    (name,) = (name for name in lines[0] if name.startswith(TASK) and name.endswith("K=0"))
    results = evals.evaluate(run, TASK, shots=[0], limit=3)
    (cell,) = results.cells
    assert lines[-1][name] == cell.value
    for line in lines:
        assert line[f"{name}/items"] == 3 and f"{name}/stderr" in line, "the first as the others"
    assert name == f"{TASK}/{cell.metric}/K=0"
    assert 0 < lines[-1]["share_of_time"] <= 1
    assert lines[-1]["seconds"] > 0


def test_tasks_are_read_from_their_data_sets(tmp_path: Path) -> None:
    row = {"premise": "It fell.", "choice1": "It ran.", "choice2": "It sat.", "question": "cause", "label": 0}
    folder = tmp_path / "sets" / "COPA"
    folder.mkdir(parents=True)
    (folder / "val.jsonl").write_text(json.dumps(row) + "\n")
    found = {"tasks": ["copa", "cb"], "shots": [0], "every_tokens": 10_000, "limit": 2, "data": str(tmp_path / "sets")}
    with pytest.raises(UserError, match=r"task cb: no test split in .*sets; looked for CB/val\.jsonl"):
        train.run(config(tmp_path, evals=found), hooks=[evals.EvaluateTasks])


def test_of_the_paper_what_cannot_be_asked_is_left_out_of_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"premise": "It fell.", "choice1": "It ran.", "choice2": "It sat.", "question": "cause", "label": 0}
    folder = tmp_path / "sets" / "COPA"
    folder.mkdir(parents=True)
    for split in ("val", "train"):
        (folder / f"{split}.jsonl").write_text(json.dumps(row | {"premise": split}) + "\n")
    words = str(tmp_path / "no words")
    wanted = {"tasks": ["paper"], "shots": [0, 1, 2], "limit": 1, "data": str(tmp_path / "sets"), "words": words}
    made = config(tmp_path, evals={**wanted, "every_tokens": 10_000})

    with caplog.at_level("INFO"):
        tasks = evals.EvaluateTasks(SimpleNamespace(config=made), None)._tasks  # type: ignore[arg-type]
    assert "copa" in [each.task.name for each in tasks]
    assert "there is 1 to draw from; give more examples, or evaluate it by itself with --shots 1 at" in caplog.text
    assert "at most (in training evals.shots); K = 2 is left out" in caplog.text


def test_an_evaluation_leaves_the_losses_as_they_are(evaluated: tuple[Path, int], tmp_path: Path) -> None:
    train.run(config(tmp_path, evals={}))
    assert losses(evaluated[0]) == losses(tmp_path / "run")


def test_tasks_that_no_hook_evaluates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"two_digit_addition, and no hook evaluates them; call train.run"):
        train.run(config(tmp_path))
    assert not (tmp_path / "run").exists()


def test_an_unknown_task_ends_before_training(tmp_path: Path) -> None:
    made = config(tmp_path, evals={"tasks": ["two_digit_adition"], "shots": [0]})
    with pytest.raises(UserError, match=r"unknown task 'two_digit_adition'; the nearest is two_digit_addition"):
        train.run(made, hooks=[evals.EvaluateTasks])
