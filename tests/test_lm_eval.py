"""lm-evaluation-harness on our model: what its own `hf` model gives for the same weights, task by task."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness_tasks
import jax
import numpy as np
import pytest

from gpt3_jax import model
from gpt3_jax.cli.main import main
from gpt3_jax.config import ParallelConfig, load_config
from gpt3_jax.errors import UserError
from gpt3_jax.evals.encoding import windows
from gpt3_jax.interop.loading import load_model
from gpt3_jax.parallel.mesh import make_mesh
from gpt3_jax.train.checkpoint.resume import Data, make_record
from gpt3_jax.train.checkpoint.store import CheckpointStore
from gpt3_jax.train.schedule import batch_schedule
from gpt3_jax.train.state import init_state

pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install -c constraints.txt -e '.[evals]'")
pytestmark = pytest.mark.evals
CTX = 160


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is looked up, and what is cached is in a folder of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        datasets = pytest.importorskip("datasets")

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
        yield


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory, offline: None) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("tasks")
    return folder, harness_tasks.write(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 with a BPE of its own, in Hugging Face's format."""
    torch = pytest.importorskip("torch", reason="needs the extra hf")
    transformers = pytest.importorskip("transformers", reason="needs the extra hf")
    tokenizers = pytest.importorskip("tokenizers", reason="needs the extra hf")
    path = tmp_path_factory.mktemp("model")
    bpe = tokenizers.ByteLevelBPETokenizer()
    lines = [str(value) for items in harness_tasks.rows().values() for item in items for value in item.values()]
    bpe.train_from_iterator(lines, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    bpe.save_model(str(path))
    tokenizer = transformers.GPT2TokenizerFast(str(path / "vocab.json"), str(path / "merges.txt"))
    tokenizer.save_pretrained(path)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_positions=CTX, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    made = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    made.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    from gpt3_jax.evals.harness.model import HarnessModel

    return HarnessModel(pretrained=str(folder), batch_tokens=1024)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=7)


def instances(kind: Any, arguments: list[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]


def texts(count: int, longest: int) -> list[str]:
    rng = random.Random(0)
    words = [word for row in harness_tasks.rows()["stories"] for word in (row["context"] + row["ending"]).split()]
    return [" ".join(rng.choices(words, k=rng.randrange(1, longest))) for _ in range(count)]


@pytest.mark.hf
def test_the_metrics_are_those_of_the_hf_model(tasks: tuple[Path, list[str]], ours: Any, theirs: Any) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    include, names = tasks
    manager = TaskManager(include_path=str(include), include_defaults=False)
    found, wanted = (
        simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0) for lm in (ours, theirs)
    )
    assert set(found["results"]) == set(names)
    compared = 0
    for name in names:
        assert len(found["samples"][name]) == len(harness_tasks.rows()[name.removeprefix("invented_")])
        for metric, value in wanted["results"][name].items():
            if isinstance(value, float):
                assert found["results"][name][metric] == pytest.approx(value, rel=1e-4), (name, metric)
                compared += 1
        for one, other in zip(found["samples"][name], wanted["samples"][name], strict=True):
            assert one["arguments"] == other["arguments"]
            assert_responses_equal(one["filtered_resps"], other["filtered_resps"])
    assert compared >= 10


def assert_responses_equal(found: Any, wanted: Any) -> None:
    if isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=1e-3)
    elif isinstance(wanted, (list, tuple)):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_responses_equal(one, other)
    else:
        assert found == wanted


@pytest.mark.hf
def test_likelihoods_and_flags_are_those_of_the_hf_model(ours: Any, theirs: Any) -> None:
    """Contexts that are empty, end in spaces, or are too long, so that they are cut from the left; continuations that
    the model would have given itself, and such as differ from these in one token."""
    contexts = ["", "Ana ", "Bo found\n", *texts(12, 40), *texts(3, 200)]
    greedy = ours.generate_until(instances("generate_until", [(c, {"max_gen_toks": 3}) for c in contexts]))
    asked = [(c, text) for c in contexts for text in (" a red kite", "x", "A", "\n\nB")]
    asked += [(c.rstrip(), c[len(c.rstrip()) :] + text) for c, text in zip(contexts, greedy, strict=True) if text]
    requests = instances("loglikelihood", asked)
    found, wanted = ours.loglikelihood(requests), theirs.loglikelihood(requests, disable_tqdm=True)
    assert_responses_equal(found, wanted)
    flags = [flag for _, flag in found]
    assert flags.count(True) >= 5 and flags.count(False) >= 50
    # The hf model fails where nothing of the context is left.
    assert ours.loglikelihood(instances("loglikelihood", [("  ", "x")])) == ours.loglikelihood(
        instances("loglikelihood", [("", "  x")])
    )


@pytest.mark.hf
def test_texts_are_scored_in_the_windows_of_the_hf_model(ours: Any, theirs: Any) -> None:
    """Up to four windows; the last has as much context as fits, and no token counts twice."""
    requests = instances("loglikelihood_rolling", [(text,) for text in [*texts(6, 30), *texts(4, 300), "", "Ω"]])
    assert_responses_equal(ours.loglikelihood_rolling(requests), theirs.loglikelihood_rolling(requests, True))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"until": ["\n", " a"], "max_gen_toks": 20},
        {"until": "e", "max_gen_toks": 100},
        {"max_gen_toks": 12, "num_beams": 3, "do_sample": False},
        {"until": ["."], "max_gen_toks": 10, "num_beams": 2, "length_penalty": 0.6},
    ],
)
def test_completions_are_those_of_the_hf_model(kwargs: dict[str, Any], ours: Any, theirs: Any) -> None:
    """Contexts that are too long are cut from the left to leave room for the completion."""
    theirs.batch_size_per_gpu = 1
    few = "num_beams" in kwargs
    contexts = [*texts(3 if few else 10, 25), *texts(1 if few else 2, 200)]
    requests = instances("generate_until", [(context, dict(kwargs)) for context in contexts])
    found, wanted = ours.generate_until(requests), theirs.generate_until(requests, disable_tqdm=True)
    assert found == wanted
    assert len(set(found)) > 1


def test_a_repeated_request_is_another_sample_and_the_same_the_next_time(ours: Any) -> None:
    kwargs = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 20}
    requests = instances("generate_until", [("Ana found", kwargs)] * 4 + [("Ana found", {"max_gen_toks": 20})])
    first = ours.generate_until(requests)
    assert len(set(first)) == 5
    assert ours.generate_until(requests) == first


def test_a_mesh_gives_the_same(folder: Path, ours: Any) -> None:
    from gpt3_jax.evals.harness.model import HarnessModel

    sharded = HarnessModel(pretrained=str(folder), data=4, tensor=2, stage=3, batch_tokens=256)
    pairs = instances("loglikelihood", [(context, " three eggs") for context in texts(9, 30)])
    assert_responses_equal(sharded.loglikelihood(pairs), ours.loglikelihood(pairs))
    prompts = instances("generate_until", [(context, {"max_gen_toks": 8}) for context in texts(5, 20)])
    assert sharded.generate_until(prompts) == ours.generate_until(prompts)


def saved_run(base: Path) -> Path:
    """A run with one checkpoint, of random parameters far from their initial values."""
    small = ["--model.n_ctx=32", "--model.d_model=32", "--model.n_layers=2", "--train.batch_tokens=64"]
    config = load_config(["quickstart"], [*small, f"--train.run_dir={base / 'run'}"])
    state = init_state(config, make_mesh(ParallelConfig(data=1), jax.devices()[:1]))
    noise = jax.random.normal
    params = jax.tree.map(lambda x: 2 * x + 0.3 * noise(jax.random.key(x.size), x.shape), state.params)
    record = make_record(config, batch_schedule(config, 1), Data("", ""))
    store = CheckpointStore(base / "run" / "checkpoints", keep_last=1, keep_every_tokens=0)
    store.save(64, 1, dataclasses.replace(state, params=params), record, wait=True)
    store.close()
    return base / "run"


def test_the_answers_are_those_of_the_models_logits() -> None:
    """Without torch: each rule of the harness from all logits of a row."""
    from gpt3_jax.evals.harness.model import HarnessModel

    with tempfile.TemporaryDirectory() as base:
        lm = HarnessModel(pretrained=str(saved_run(Path(base))))
        params = load_model(Path(base) / "run").params
    forward = jax.jit(model.forward, static_argnums=2)

    def logprobs(ids: list[int]) -> np.ndarray:
        row = np.zeros((1, 32), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(jax.nn.log_softmax(forward(params, row, lm.config)[0, : len(ids)], axis=-1))

    def scored(context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """Cut from the left to the model's context of 32 tokens."""
        rows = logprobs([*context, *continuation][-33:][:-1])[-len(continuation) :]
        found = rows[np.arange(len(continuation)), continuation]
        return float(found.sum()), bool((rows.argmax(-1) == continuation).all())

    pairs = [("ab", "cd"), ("", "xy"), ("abc " * 20, "xyz"), ("ab ", "c")]
    # A context after which the likeliest token is a character: that is the model's own choice, with more it is not.
    own = next(chr(n) for n in range(33, 127) if 33 <= logprobs([n])[-1].argmax() < 127)
    letter = chr(logprobs([*own.encode()])[-1].argmax())
    other = chr((logprobs([*(own + letter).encode()])[-1, 97:123]).argmin() + 97)
    pairs += [(own, letter), (own, letter + other)]
    found = lm.loglikelihood(instances("loglikelihood", list(pairs)))
    wanted = [scored([*a.rstrip().encode()] or [256], [*(a[len(a.rstrip()) :] + b).encode()]) for a, b in pairs]
    assert_responses_equal(found, wanted)
    assert [flag for _, flag in found[-2:]] == [True, False]

    text = "abcdefghij" * 8  # windows of 32, 32 and 16 tokens, the last with 17 of context
    parts = windows([*text.encode()], 256, 32, 32)
    assert [len(part) for _, part in parts] == [32, 32, 16]
    expected = sum(scored(list(context), list(part))[0] for context, part in parts)
    assert_responses_equal(lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(text,)])), [expected])

    (whole,) = lm.generate_until(instances("generate_until", [("ab", {"max_gen_toks": 12})]))
    stop = next((c for c in whole[1:] if c != whole[0] and c.isascii()), whole[:1])
    (stopped,) = lm.generate_until(instances("generate_until", [("ab", {"max_gen_toks": 12, "until": [stop]})]))
    assert stopped == whole[: whole.index(stop)]


def run(folder: Path, include: Path, *more: str, args: str = "") -> int:
    return main(["lm-eval", "--model_args", f"pretrained={folder}{args}", "--include_path", str(include), *more])


def test_the_command_prints_the_harnesss_table_and_caches(
    folder: Path, tasks: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str], said: list[str]
) -> None:
    include, _ = tasks
    argv = ("--tasks", "invented_capitals,invented_texts", "--use_cache", str(tmp_path / "answers"))
    more = ("--batch_size", "8", "--output_path", str(tmp_path / "out"))
    assert run(folder, include, *argv, *more) == 0
    table = capsys.readouterr().out
    assert "|acc_norm" in table and "|bits_per_byte" in table
    assert sum("--batch_size 8 has no effect" in line for line in said) == 1
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert '"model_num_parameters"' in written.read_text()
    assert len(list(tmp_path.glob("answers*.db"))) == 1

    assert run(folder, include, *argv) == 0
    again = capsys.readouterr().out
    assert [line for line in again.splitlines() if line.startswith("|")] == [
        line for line in table.splitlines() if line.startswith("|")
    ]


@pytest.mark.parametrize(
    ("more", "args", "words"),
    [
        (["--tasks", "nothing"], "", "Tasks not found: nothing"),
        (["--tasks", "invented_sums", "--apply_chat_template"], "", "have no chat template"),
        (["--tasks", "broken"], ",max_length=4096", f"n_ctx, is {CTX}"),
        (["--tasks", "broken"], "", "lm-evaluation-harness: "),
    ],
)
def test_a_mistake_is_one_line(
    more: list[str],
    args: str,
    words: str,
    folder: Path,
    tasks: tuple[Path, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    include, _ = tasks
    (tmp_path / "broken.yaml").write_text(
        "{task: broken, dataset_path: json, dataset_kwargs: {data_files: {test: /nothing.jsonl}}, test_split: test}"
    )
    where = tmp_path if "broken" in more else include
    assert run(folder, where, *more, args=args) in (1, 2)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gpt3-jax: error")]
    assert len(lines) == 1 and words in lines[0]


def test_what_cannot_be_asked_is_said(ours: Any) -> None:
    with pytest.raises(UserError, match="generates up to 900 tokens; the model's context holds"):
        ours.generate_until(instances("generate_until", [("a", {"max_gen_toks": 900})]))
    with pytest.raises(UserError, match="a continuation has no token of its own"):
        ours.loglikelihood(instances("loglikelihood", [("a", "")]))
    with pytest.raises(UserError, match=f"the model's context holds {CTX}"):
        ours.loglikelihood(instances("loglikelihood", [("a", "x " * 400)]))
