"""Tasks read from published files: prompts byte for byte, every layout, and what is said of files that are wrong."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from published_items import (
    CASES,
    collection,
    lines,
    schema,
    table,
    write_release,
    write_saved,
    write_snapshot,
)

import gpt3_jax
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.evals import protocol, table_h1
from gpt3_jax.evals.evaluation import load_tasks
from gpt3_jax.evals.requests import Completion, Continuation
from gpt3_jax.evals.run import TaskItems, columns
from gpt3_jax.evals.tasks import published
from gpt3_jax.evals.tasks.item import Item, Items
from gpt3_jax.evals.tasks.select import GROUPS, TASKS, select
from gpt3_jax.evals.tasks.task import Task

BYTES = ByteTokenizer()


def loaded(name: str, data: Path, *settings: str) -> TaskItems:
    (found,) = load_tasks(select([name], settings, str(data)), str(data))
    return found


def load(name: str, data: Path, *settings: str) -> Items:
    return loaded(name, data, *settings).items


def prepare(found: TaskItems, shots: int, item: int = 0) -> protocol.Prepared:
    made = protocol.Preparer(found.task, found.items, BYTES, 5000).prepare(found.items.test[item], shots, 0)
    assert isinstance(made, protocol.Prepared) and made.shots == shots
    return made


# ---- prompts


@pytest.mark.parametrize("shots", [0, 1, 2])
@pytest.mark.parametrize("name", CASES)
def test_prompts_are_those_of_appendix_g(name: str, shots: int, tmp_path: Path) -> None:
    case = CASES[name]
    found = loaded(name, write_release(tmp_path, case))
    made = prepare(found, shots)
    assert found.items.train is not None
    others = [
        each.id for each in found.items.train if each.id != made.item.id or found.items.train is not found.items.test
    ]
    assert sorted(made.demonstrations) == sorted(set(made.demonstrations) & set(others))
    if shots == 0:
        assert made.prompts == case.prompts
    else:
        shown = [case.shown[others.index(each)] for each in made.demonstrations]
        own = (case.few,) if case.few is not None else case.prompts
        assert made.prompts == tuple(case.top + case.delimiter.join([*shown, each]) for each in own)
    first = made.requests[0]
    if isinstance(first, Completion):
        assert found.items.test[0].completion == case.asked[0] and len(made.requests) == 1
        assert first.prompt == made.prompts[0] and first.stop == ("\n",)
        return
    asked = [request for request in made.requests if isinstance(request, Continuation)]
    few = tuple(each.replace(" row", " row") for each in case.asked)
    assert tuple(each.continuation for each in asked) == few
    whole = [each for each in asked if each.context in made.prompts]
    if len(whole) < len(asked):  # normalised by the answer context
        assert len(whole) == len(asked) / 2
        assert {each.context for each in asked[len(whole) :]} == {"A:" if name.startswith("race") else "Answer:"}


def test_every_published_task_has_a_case() -> None:
    mine = [task for task in TASKS.values() if "test_file" in task.options]
    choices = [task.name for task in mine if not _of_answers(task)]
    assert sorted(choices) == sorted(CASES)


def _of_answers(task: Task) -> bool:
    """Tasks of another test module: answers, translation, perplexity."""
    rest = [*GROUPS["closed-book"], *GROUPS["reading"], *GROUPS["translation"]]
    return task in rest or not task.scoring.prompted


@pytest.mark.parametrize("name", CASES)
def test_entries_are_the_papers(name: str) -> None:
    task = TASKS[name]
    if name == "lambada_plain":
        return  # the paper has one LAMBADA
    rows = [table_h1.row_of(task.row, metric) for metric in task.metrics]
    assert all(row is not None and row.shots == task.shots for row in rows), "K and metrics of Table H.1"
    split = {"test": "test", "validation": "dev"}[re.sub(r"_r\d$", "", task.splits[0])]
    assert {row.split for row in rows if row} == {split}


# ---- layouts


def _content(items: Items) -> list[list[tuple[object, ...]]]:
    """All but the ids, which layouts may number otherwise."""
    splits = [items.test, *([items.train] if items.train else [])]
    return [[dataclasses.astuple(dataclasses.replace(item, id="")) for item in split] for split in splits]


@pytest.mark.parametrize("name", CASES)
def test_the_hubs_layouts_are_read_as_the_authors(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    case = CASES[name]
    released = load(name, write_release(tmp_path / "released", case))
    for write in (write_saved, write_snapshot):
        there = write(tmp_path / write.__name__, case)
        assert _content(load(name, there)) == _content(released), write.__name__


def test_a_folder_of_everything_is_told_apart(tmp_path: Path) -> None:
    for case in CASES.values():
        write_release(tmp_path, case)
    for name in CASES:
        assert len(load(name, tmp_path).test) == (3 if name == "winograd" else 1)
    pytest.importorskip("pyarrow")
    both = tmp_path / "hub"
    for name, case in CASES.items():
        write_saved(both, case, name=f"{name} data")
    for name in CASES:
        assert len(load(name, both).test) == (3 if name == "winograd" else 1)


def test_compressed_files_and_the_folder_itself_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "BoolQ"
    folder.mkdir()
    for split in ("val", "train"):
        text = CASES["boolq"].files[f"SuperGLUE/BoolQ/{split}.jsonl"]
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert len(load("boolq", folder).test) == 1
    (folder / "val.jsonl").write_text(CASES["boolq"].files["SuperGLUE/BoolQ/val.jsonl"])
    assert load("boolq", tmp_path).source == f"{folder / 'val.jsonl'}, {folder / 'train.jsonl.gz'}"


def test_links_are_followed_and_a_loop_of_them_ends(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "linked").symlink_to(write_release(tmp_path / "elsewhere", CASES["cb"]))
    (data / "round").symlink_to(data)
    assert len(load("cb", data).test) == 1


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    write_release(tmp_path, CASES["race_high"])
    for copy in ("__MACOSX", ".trash"):
        write_release(tmp_path / copy, CASES["race_high"])
    (tmp_path / "some/folder/RACE/test/high/._10.txt").write_text("attributes")
    assert len(load("race_high", tmp_path).test) == 1


def test_what_is_not_found_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        load("race_high", tmp_path)
    assert str(error.value) == (
        f"task race_high: no test split in {tmp_path}; looked for RACE/test/high/*.txt or the Hub's race high (test)"
    )
    with pytest.raises(UserError, match=r"task cb: no test split: give its folder with --data \(in training evals"):
        load_tasks(select(["cb"]))
    with pytest.raises(UserError, match=r"the folder of data sets '.*none' is not there"):
        load("cb", tmp_path / "none")


def test_without_a_training_split_only_zero_shot_is_left(tmp_path: Path) -> None:
    write_release(tmp_path, CASES["cb"])
    (tmp_path / "some" / "folder" / "SuperGLUE" / "CB" / "train.jsonl").unlink()
    found = loaded("cb", tmp_path)
    assert found.items.train is None
    protocol.check_shots(found.task, found.items, 0)
    with pytest.raises(UserError, match=r"no train split in .*; looked for CB/train.jsonl or the Hub's super_glue cb"):
        protocol.check_shots(found.task, found.items, 1)


def test_two_candidates_are_refused_and_named(tmp_path: Path) -> None:
    write_release(tmp_path / "a", CASES["cb"])
    write_release(tmp_path / "b", CASES["cb"])
    with pytest.raises(UserError) as error:
        load("cb", tmp_path)
    one, other = (tmp_path / each / "some/folder/SuperGLUE/CB/val.jsonl" for each in "ab")
    assert str(error.value) == (
        f"task cb: {tmp_path} has 2 candidates for the test split: {one}, {other}; name one with --set "
        "cb.test_file=PATH"
    )
    train = f"cb.train_file={tmp_path}/a/some/folder/SuperGLUE/CB/train.jsonl"
    assert load("cb", tmp_path, f"cb.test_file={other}", train).source.startswith(str(other))


def test_the_newer_of_two_versions_is_taken(tmp_path: Path) -> None:
    """anli_v1.0 has the rows; v0.1 and v0.10 beside it are no JSON."""
    write_release(tmp_path, CASES["anli_r2"])
    older = tmp_path / "some/folder/anli_v0.10/R2/test.jsonl"
    older.parent.mkdir(parents=True)
    older.write_text("not read")
    assert len(load("anli_r2", tmp_path).test) == 1
    (tmp_path / "some/folder/anli_v1.0/R2/test.jsonl").unlink()
    with pytest.raises(UserError, match=r"anli_v0\.10/R2/test\.jsonl, line 1 is not JSON"):
        load("anli_r2", tmp_path)


def test_versions_are_compared_as_numbers() -> None:
    assert published._newest(["d/anli_v0.9/x", "d/anli_v0.10/x", "d/anli_v0.1/x"]) == 1
    assert published._newest(["d/a_v0.9/x", "d/b_v0.10/x"]) is None


def test_files_can_be_named_outright(tmp_path: Path) -> None:
    case = CASES["piqa"]
    for ending in (".jsonl", "-labels.lst"):
        (tmp_path / f"mine{ending}").write_text(case.files[f"piqa/train{ending}"])
    (tmp_path / "other.jsonl").write_text(lines({"goal": "a", "sol1": "b", "sol2": "c", "label": 1}))
    settings = [f"piqa.test_file={tmp_path}/other.jsonl", f"piqa.train_file={tmp_path}/mine.jsonl"]
    (found,) = load_tasks(select(["piqa"], settings))
    assert [len(found.items.test), len(found.items.train or ())] == [1, 2]
    assert found.task.settings()["test_file"]["value"] == f"{tmp_path}/other.jsonl"
    with pytest.raises(UserError, match=r"none\.jsonl is not there"):
        load_tasks(select(["piqa"], [f"test_file={tmp_path}/none.jsonl"]))
    with pytest.raises(UserError, match=r"is a folder without \.arrow or \.parquet files; give a file"):
        load_tasks(select(["piqa"], [f"test_file={tmp_path}"]))
    with pytest.raises(UserError, match=r"piqa\.test_file 's3://x/y' is an address"):
        select(["piqa"], ["test_file=s3://x/y"])
    write_release(tmp_path, CASES["race_high"])
    level = tmp_path / "some/folder/RACE/train/high"
    assert len(load("race_high", tmp_path, f"race_high.test_file={level}").test) == 2


def test_a_saved_set_that_lost_its_names_is_known_by_its_folders(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_saved(tmp_path / "super_glue", CASES["cb"], name="cb")
    for info in tmp_path.rglob("dataset_info.json"):
        info.write_text("{}")
    assert len(load("cb", tmp_path).test) == 1
    with pytest.raises(UserError, match="no test split"):
        load("rte", tmp_path)


def test_of_several_configurations_the_first_known_one_is_taken(tmp_path: Path) -> None:
    """A snapshot holds all of them: of WSC the corrected one is read, of LAMBADA the English one."""
    pytest.importorskip("pyarrow")
    case = CASES["wsc"]
    write_snapshot(tmp_path, case)
    write_snapshot(tmp_path, dataclasses.replace(case, hub=("super_glue", "wsc")))
    assert "wsc.fixed" in load("wsc", tmp_path).source
    case = CASES["lambada"]
    for config in ("en", "de"):
        write_snapshot(tmp_path, dataclasses.replace(case, hub=("lambada_openai", config)))
    assert f"{os.sep}en{os.sep}" in load("lambada", tmp_path).source


@pytest.mark.parametrize("name", ["0000.parquet", "test-00000-of-00001.parquet"])
def test_splits_may_have_folders_of_their_own(name: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_snapshot(tmp_path, CASES["arc_easy"])
    (path,) = tmp_path.rglob("test-00000-of-00001.parquet")
    (path.parent / "test").mkdir()
    path.rename(path.parent / "test" / name)
    assert len(load("arc_easy", tmp_path).test) == 1


def test_a_snapshot_of_another_data_set_is_not_taken(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name, other in (("lambada_plain", "imdb"), ("openbookqa", "gsm8k"), ("rte", "glue"), ("cb", "glue")):
        case = CASES[name]
        write_snapshot(tmp_path, dataclasses.replace(case, hub=(other, case.hub[1])))
        write_saved(tmp_path, dataclasses.replace(case, hub=(other, case.hub[1])), name=f"saved {name}")
        with pytest.raises(UserError, match="no test split"):
            load(name, tmp_path)


def test_the_root_of_a_snapshot_is_enough(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for name in ("boolq", "hellaswag", "anli_r1"):
        write_snapshot(tmp_path, CASES[name])
        assert len(load(name, next((tmp_path / f"datasets--owner--{CASES[name].hub[0]}").rglob("0a1b"))).test) == 1


def test_a_snapshot_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_snapshot(tmp_path, CASES["cb"])
    (whole,) = tmp_path.rglob("validation-00000-of-00001.parquet")
    whole.rename(whole.with_name("validation-00000-of-00002.parquet"))
    with pytest.raises(UserError, match="is one of 2 parts, of which 1 are there; fetch the others"):
        load("cb", tmp_path)
    whole.with_name("validation-00001-of-00002.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RunError, match=r"validation-00001-of-00002\.parquet is not valid Parquet"):
        load("cb", tmp_path)


def test_the_paper_is_all_that_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_release(tmp_path, CASES["copa"])
    words = tmp_path / "words"
    words.write_text("stream\ncastle\n")
    tasks = load_tasks(select(["paper"], ["copa.first_letter=data"], str(tmp_path)), str(tmp_path), str(words))
    names = [each.task.name for each in tasks]
    assert set(names) == {task.name for group in ("arithmetic", "words") for task in GROUPS[group]} | {"copa"}
    assert tasks[names.index("copa")].task.options["first_letter"] == "data"
    with pytest.raises(UserError, match="task boolq: no test split"):  # one that is asked for by its name must be there
        load_tasks(select(["paper", "superglue"], [], str(tmp_path)), str(tmp_path), str(words))


def test_of_the_paper_what_cannot_be_asked_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_release(tmp_path, CASES["copa"])  # two demonstrations, no word list, no arithmetic
    with caplog.at_level("INFO"):
        tasks = load_tasks(select(["paper"], [], str(tmp_path)), str(tmp_path), str(tmp_path / "no words"), 1)
    assert "words" not in {each.task.name for each in tasks} and "; left out: cycle_letters_in_word, " in caplog.text
    (copa,) = [each for each in tasks if each.task.name == "copa"]
    assert columns(copa, [0, 1, 2, 3, None]) == [0, 1, 2]
    asked = dataclasses.replace(copa, task=dataclasses.replace(copa.task, optional=False))
    assert columns(asked, [0, 3]) == [0, 3], "one that is asked for by its name is refused instead"


# ---- what the data has


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    val = CASES["rte"].files["SuperGLUE/RTE/val.jsonl"]
    test = tmp_path / "val.jsonl"
    test.write_text(val + lines({"premise": "a", "hypothesis": "b", "idx": 8}, json.loads(val) | {"label": -1}))
    with caplog.at_level("INFO"):
        items = load("rte", tmp_path, f"rte.test_file={test}")
    assert len(items.test) == 1
    assert f"task rte: 2 of 3 rows of {test} have no label and are left out" in caplog.text
    test.write_text(lines({"premise": "a", "hypothesis": "b", "idx": 8}))
    with pytest.raises(UserError, match=r"val\.jsonl has no row with a label; give the split that has labels"):
        load("rte", tmp_path, f"rte.test_file={test}")


def test_items_of_one_id_are_numbered(tmp_path: Path) -> None:
    test = tmp_path / "val.jsonl"
    test.write_text(3 * CASES["rte"].files["SuperGLUE/RTE/val.jsonl"])
    assert [item.id for item in load("rte", tmp_path, f"rte.test_file={test}").test] == ["3", "3 (2)", "3 (3)"]


def _changed(name: str, tmp_path: Path, *settings: str) -> Item:
    return load(name, write_release(tmp_path, CASES[name]), *settings).test[0]


def test_settings_change_what_they_say(tmp_path: Path) -> None:
    def context(name: str, *settings: str) -> str:
        return _changed(name, tmp_path, *settings).context

    assert "whistle , a" in context("boolq", "punctuation=data")
    assert "the word \u2018bank\u2019 used" in context("wic", "quotes=curly")
    assert _changed("copa", tmp_path, "first_letter=data").choices == ("The water boiled.", "The cup was blue.")
    assert "Otto 's cat , and he fed *it* ." in context("wsc", "text=data")
    assert context("hellaswag", "ctx_b=data").endswith("wool. he")
    assert _changed("openbookqa", tmp_path, "period=false").choices[0] == "jump"
    assert _changed("winograd", tmp_path, "candidates=data").contexts[0].endswith("He thinks his saw")
    assert len(load("winograd", tmp_path, "schemas=2").test) == 2
    assert context("lambada", "blank=_____", "arrow=\u2192").endswith("to _____. \u2192")
    train = load("hellaswag", tmp_path, "tags=removed").train
    assert train and train[0].context == "Home and Garden: How to paint. Sand it. Wait."
    assert len(load("wsc", tmp_path, "demonstrations=all").train or ()) == 3


def test_headers_stand_once_or_in_each_example(tmp_path: Path) -> None:
    for name in ("lambada", "wsc", "multirc"):
        case = CASES[name]
        found = loaded(name, write_release(tmp_path, case), f"{name}.instructed=each")
        few = case.few or ""
        made = prepare(found, 2)
        assert made.prompts[0].count(case.top) == 3 and made.prompts[0].endswith(f"{case.delimiter}{case.top}{few}")
        assert prepare(found, 0).prompts == case.prompts


def test_labels_can_be_chosen_instead_of_generated(tmp_path: Path) -> None:
    for name, words in (("boolq", "yes no"), ("cb", "true false neither"), ("rte", "True False"), ("wic", "yes no")):
        made = prepare(loaded(name, write_release(tmp_path, CASES[name]), "framing=choices"), 1)
        assert made.requests == tuple(Continuation(made.prompts[0], f" {word}") for word in words.split())


def test_race_shows_the_articles_other_questions(tmp_path: Path) -> None:
    letters, options = ["A", "B", "C"], [["a", "b", "c", "d"]] * 3
    row = {
        "answers": letters,
        "options": options,
        "questions": ["one _ ?", "two?", "three?"],
        "article": "Text.",
        "id": "x",
    }
    (tmp_path / "1.txt").write_text(json.dumps(row))

    def contexts(how: str) -> list[str]:
        test = load("race_high", tmp_path, f"race_high.test_file={tmp_path}/1.txt", f"other_questions={how}").test
        return [item.context.removeprefix("Article:\nText.\n\n") for item in test]

    one, two, three = "Q: one _ ?\n\nA:", "Q: two?\n\nA:", "Q: three?\n\nA:"
    assert contexts("all") == [
        f"{two} b\n\n{three} c\n\n{one}",
        f"{one} a\n\n{three} c\n\n{two}",
        f"{one} a\n\n{two} b\n\n{three}",
    ]
    assert contexts("earlier") == [one, f"{one} a\n\n{two}", f"{one} a\n\n{two} b\n\n{three}"]
    assert contexts("none") == [one, two, three]


@pytest.mark.parametrize(
    ("pronoun", "after", "answers", "contexts", "rest"),
    [
        ("they", "left.", ["The men", "Ann"], ["Now the men", "Now Ann"], " left."),
        ("It", "fell.", ["a cup", "the pot"], ["Now A cup", "Now The pot"], " fell."),
        ("her", "hat fell.", ["Ann", "Ann's mother"], ["Now Ann's", "Now Ann's mother's"], " hat fell."),
        ("his", "hat fell.", ["Bo's", "The boys'"], ["Now Bo's", "Now the boys'"], " hat fell."),
        ("it", ", then.", ["my map", "this one"], ["Now the map", "Now this one"], ", then."),
        ("it", ".", ["Their dog", "Paris"], ["Now the dog", "Now Paris"], "."),
    ],
)
def test_candidates_take_the_pronouns_place(
    pronoun: str, after: str, answers: list[str], contexts: list[str], rest: str, tmp_path: Path
) -> None:
    path = tmp_path / "WSCollection.xml"
    path.write_text(collection(schema("Now", pronoun, after, answers, "A")))
    (item,) = load("winograd", tmp_path).test
    assert (list(item.contexts), item.completion, item.right) == (contexts, rest, (0,))


def test_the_collections_encoding_is_read(tmp_path: Path) -> None:
    text = collection(schema("Zo\u00eb met Ren\u00e9e because", "she", "called.", ["Zo\u00eb", "Ren\u00e9e"], "B"))
    (tmp_path / "WSCollection.xml").write_bytes(text.encode("latin-1"))
    assert load("winograd", tmp_path).test[0].context == "Zo\u00eb met Ren\u00e9e because Ren\u00e9e"


def test_winograd_with_the_candidates_put_in_is_read(tmp_path: Path) -> None:
    contexts = ["Ann left because Ann", "Ann left because Bo"]
    row = {"context_options": contexts, "continuation": "slept.", "gold": 1}
    (tmp_path / "winograd_wsc.jsonl").write_text(lines(row))
    (item,) = load("winograd", tmp_path).test
    assert (list(item.contexts), item.completion, item.right) == (contexts, " slept.", (1,))


# ---- wrong files

Change = Callable[[str], str]


def _edit(**fields: object) -> Change:
    """The first row with other fields; a field of None is taken away."""

    def change(text: str) -> str:
        first, _, rest = text.partition("\n")
        row = json.loads(first) | fields
        return json.dumps({key: value for key, value in row.items() if value is not None}) + "\n" + rest

    return change


def _to(text: str) -> Change:
    return lambda _: text


_LATIN = "caf\u00e9"
WRONG: dict[str, tuple[str, list[tuple[Change, str]]]] = {
    # JSON lines, one object a line
    "boolq": (
        "val.jsonl",
        [
            (_to(""), "val.jsonl is empty; expected one JSON object a line"),
            (_to("{"), "val.jsonl, line 1 is not JSON"),
            (_to('["a"]\n'), "val.jsonl, line 1 is a list; expected an object"),
            (_edit(passage=None), "val.jsonl, line 1: 'passage' is missing; it has 'question', 'idx', 'label'"),
            (_edit(passage=3), "val.jsonl, line 1: 'passage' is a number; expected text"),
            (_edit(question=" "), "val.jsonl, line 1: 'question' is empty; expected text"),
            (_edit(label="true"), "val.jsonl, line 1: 'label' is 'true'; expected one of True, False"),
            (_edit(label=2), "val.jsonl, line 1: 'label' is 2; expected one of True, False"),
            (_edit(label=[0]), "val.jsonl, line 1: 'label' is [0]; expected one of True, False"),
            (_edit(passage="\ud83d"), "val.jsonl, line 1: 'passage' has half a character"),
            (lambda text: text + "\x00", "val.jsonl, line 2 is not JSON"),
        ],
    ),
    # choices as lists and objects
    "arc_easy": (
        "ARC-Easy-Test.jsonl",
        [
            (_edit(question=None), "line 1: 'question' is missing; it has 'id', 'answerKey'"),
            (_edit(question="Why?"), "line 1: 'choices' is missing; it has 'id', 'question', 'answerKey'"),
            (_edit(question={"stem": "Why?"}), "line 1, question: 'choices' is missing; it has 'stem'"),
            (
                _edit(question={"stem": "Why?", "choices": {}}),
                "line 1, question: 'choices' is an object; expected a list",
            ),
            (
                _edit(question={"stem": "Why?", "choices": ["a"]}),
                "question: 'choices'[0] is a text; expected an object",
            ),
            (
                _edit(question={"stem": "Why?", "choices": [{"text": "a"}]}),
                "line 1, question, choices[0]: 'label' is missing; it has 'text'",
            ),
            (
                _edit(question={"stem": "Why?", "choices": [{"text": "a", "label": "A"}]}),
                "line 1: the labels of its 1 choices are A; expected one for each",
            ),
            (
                _edit(question={"stem": "Why?", "choices": 2 * [{"text": "a", "label": "A"}]}),
                "line 1: the labels of its 2 choices are A, A; expected one for each",
            ),
            (_edit(answerKey="E"), "line 1: 'answerKey' is 'E'; expected one of '1', '2', '3', '4'"),
            (_edit(answerKey=3), "line 1: 'answerKey' is 3; expected one of '1', '2', '3', '4'"),
        ],
    ),
    # nested objects
    "multirc": (
        "val.jsonl",
        [
            (_edit(passage=None), "line 1: 'passage' is missing"),
            (_edit(passage="x"), "line 1: 'passage' is a text; expected an object"),
            (_edit(passage={"questions": []}), "line 1, passage: 'text' is missing; it has 'questions'"),
            (_edit(passage={"text": "x"}), "line 1, passage: 'questions' is missing; it has 'text'"),
            (
                _edit(passage={"text": "x", "questions": {}}),
                "passage: 'questions' is an object; expected a list of objects",
            ),
            (_edit(passage={"text": "x", "questions": [1]}), "passage: 'questions'[0] is a number; expected an object"),
            (
                _edit(passage={"text": "x", "questions": [{}]}),
                "questions[0]: 'question' is missing; the object is empty",
            ),
            (
                _edit(passage={"text": "x", "questions": [{"question": "y", "answers": []}]}),
                "passage, questions[0]: the question has no answers",
            ),
            (
                _edit(passage={"text": "x", "questions": [{"question": "y", "answers": [{"label": 1}]}]}),
                "questions[0], answers[0]: 'text' is missing; it has 'label'",
            ),
            (
                _edit(passage={"text": "x", "questions": [{"question": "y", "answers": [{"text": "z", "label": 5}]}]}),
                "questions[0], answers[0]: 'label' is 5; expected one of True, False",
            ),
        ],
    ),
    # places in a text
    "record": (
        "val.jsonl",
        [
            (
                _edit(passage={"text": "abc", "entities": [{"start": 0}]}),
                "entities[0]: 'end' is missing; it has 'start'",
            ),
            (
                _edit(passage={"text": "abc", "entities": [{"start": 0, "end": 3}]}),
                "entities[0]: 'end' is 3; expected a number from 0 to 2",
            ),
            (
                _edit(passage={"text": "abc", "entities": [{"start": 0.5}]}),
                "'start' is 0.5; expected a number from 0 to 3",
            ),
            (_edit(passage={"text": "abc", "entities": 3}), "'entities' is a number; expected a list of objects"),
            (
                _edit(passage={"text": "abc", "entities": []}),
                "none of the answers 'Mia Berg', 'Berg' is among its entities",
            ),
            (_edit(passage={"entities": []}), "line 1, passage: 'text' is missing"),
            (_edit(qas=None), "line 1: 'qas' is missing"),
            (
                _edit(qas=[{"query": "no blank", "answers": [{"text": "Oslo"}]}]),
                "the query has no @placeholder: 'no blank'",
            ),
            (_edit(qas=[{"query": "@placeholder", "answers": ["Oslo"]}]), "'answers'[0] is a text; expected an object"),
            (
                _edit(qas=[{"query": "@placeholder", "answers": [{}]}]),
                "answers[0]: 'text' is missing; the object is empty",
            ),
        ],
    ),
    "wsc": (
        "val.jsonl",
        [
            (_edit(target={"span1_text": "a"}), "line 1, target: 'span2_text' is missing; it has 'span1_text'"),
            (_edit(target=[]), "line 1: 'target' is a list; expected an object"),
            (_edit(text="No such word."), "line 1, target: the text has no 'it', which is its 'span2_text'"),
            (
                _edit(target={"span1_text": "a", "span2_text": "it", "span2_index": "1"}),
                "'span2_index' is '1'; expected a",
            ),
            (_edit(label="yes"), "line 1: 'label' is 'yes'; expected one of True, False"),
        ],
    ),
    # one JSON document a file
    "race_high": (
        "test/high/10.txt",
        [
            (_to("{"), "10.txt, line 1 is not JSON"),
            (_to("[]"), "10.txt is no JSON object; expected an article with its questions"),
            (_edit(questions=None), "10.txt: 'questions' is missing; it has 'answers', 'options', 'article', 'id'"),
            (_edit(questions=[]), "10.txt: 'questions' has 0 entries; expected 1 to 100"),
            (_edit(questions=[1]), "10.txt: 'questions' holds 1; expected texts"),
            (_edit(options=[]), "10.txt: 'options' is not a list of 1, one for each question"),
            (_edit(answers="B"), "10.txt: 'answers' is not a list of 1, one for each question"),
            (_edit(options=[["only one"]]), "10.txt, question 0: 'options' has 1 entries; expected 2 to 9"),
            (_edit(answers=["F"]), "10.txt, question 0: 'answer' is 'F'; expected one of 'A', 'B', 'C', 'D'"),
            (_edit(article=""), "10.txt: 'article' is empty; expected text"),
        ],
    ),
    # XML
    "winograd": (
        "WSCollection.xml",
        [
            (_to(""), "WSCollection.xml, line 1 is not XML"),
            (_to("<a>\n<b></a>"), "WSCollection.xml, line 2 is not XML"),
            (_to('<?xml version="1.0" encoding="klingon"?><a/>'), "WSCollection.xml is not XML"),
            (_to("<collection/>"), "WSCollection.xml has no <schema>"),
            (lambda t: t.replace("<pron> it </pron>", "", 1), "WSCollection.xml, schema 1: <pron> is missing"),
            (lambda t: t.replace("is sharper.", "", 1), "WSCollection.xml, schema 1: <txt2> is empty"),
            (
                lambda t: t.replace("<answer>my axe </answer>", "", 1),
                "schema 1: <answers> has 1 texts; expected two or more",
            ),
            (
                lambda t: t.replace("<answer>my axe ", "<answer> ", 1),
                "schema 1: <answers> has 2 texts; expected two or more",
            ),
            (lambda t: t.replace("> B.  <", "> C <", 1), "schema 1: <correctAnswer> is 'C'; expected a letter, A to B"),
            (lambda t: t.replace("<correctAnswer> B  </correctAnswer>", "", 1), "schema 2: <correctAnswer> is missing"),
        ],
    ),
    # CSV
    "storycloze": (
        "cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
        [
            (_to(""), "test.csv is empty; expected a line of column names"),
            (lambda t: t.partition("\n")[0] + "\n", "test.csv has no row below its column names"),
            (lambda t: t.replace("AnswerRightEnding", "Answer"), "test.csv has no row with a label"),
            (lambda t: t.replace("InputSentence1", "First"), "line 2: 'InputSentence1' is missing"),
            (lambda t: t.replace("It rose.", ""), "line 2: 'InputSentence4' is empty; expected text"),
            (lambda t: t.replace("It rose.", "It, rose."), "line 2 has 9 fields; expected 8, as in the first line"),
            (lambda t: t.replace(",1", ",3"), "line 2: 'AnswerRightEnding' is '3'; expected one of 1, 2, '1', '2'"),
            (lambda t: t.replace('""up!""', '"up!"'), "test.csv, line 2 is not CSV"),
            (lambda t: t.replace(",1", ',"1'), "is not CSV (unexpected end of data)"),
            (_to("only\none, two\n"), "test.csv, line 2 has 2 fields; expected 1, as in the first line"),
        ],
    ),
    # labels beside the rows
    "piqa": (
        "valid-labels.lst",
        [
            (_to(""), "valid-labels.lst is empty; expected lines of text"),
            (_to("0\n1\n"), "valid-labels.lst 2; fetch both again"),
            (_to("2\n"), "valid-labels.lst, line 1: 'label' is '2'; expected one of '0', '1'"),
            (_to("\n"), "valid-labels.lst, line 1: 'label' is ''; expected one of '0', '1'"),
        ],
    ),
    # plain text
    "lambada_plain": (
        "lambada_test_plain_text.txt",
        [
            (_to(""), "lambada_test_plain_text.txt is empty; expected lines of text"),
            (_to("two words\nword\n"), "lambada_test_plain_text.txt, line 2: the text 'word' has fewer than two words"),
            (
                _to("two words\n\ntwo words\n"),
                "lambada_test_plain_text.txt, line 2: the text '' has fewer than two words",
            ),
        ],
    ),
    "winogrande": (
        "dev.jsonl",
        [
            (_edit(sentence="No blank."), "line 1: 'sentence' is 'No blank.'; expected one _ and words after it"),
            (_edit(sentence="_ and _."), "line 1: 'sentence' is '_ and _.'; expected one _ and words after it"),
            (_edit(sentence="It is _"), "line 1: 'sentence' is 'It is _'; expected one _ and words after it"),
            (_edit(answer="3"), "line 1: 'answer' is '3'; expected one of '1', '2', 1, 2"),
        ],
    ),
    "anli_r1": (
        "test.jsonl",
        [
            (_edit(context=None), "line 1: 'context' is missing; it has 'uid', 'hypothesis', 'reason', 'label'"),
            (_edit(label="x"), "line 1: 'label' is 'x'; expected one of 'e', 'n', 'c', 0, 1, 2"),
        ],
    ),
}


@pytest.mark.parametrize(
    ("name", "place"), [(name, n) for name, (_, cases) in WRONG.items() for n in range(len(cases))]
)
def test_a_wrong_file_is_one_line(name: str, place: int, tmp_path: Path) -> None:
    file, cases = WRONG[name]
    change, message = cases[place]
    write_release(tmp_path, CASES[name])
    (path,) = (each for each in tmp_path.rglob(file) if "anli_v0.1" not in str(each) and "ReCoRD/t" not in str(each))
    path.write_text(change(path.read_text()), encoding="utf-8", errors="surrogatepass")
    with pytest.raises(UserError) as error:
        load(name, tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    write_release(tmp_path, CASES["boolq"])
    (path,) = tmp_path.rglob("val.jsonl")
    path.write_bytes(lines({"passage": "x"}).encode() + _LATIN.encode("latin-1"))
    with pytest.raises(UserError, match=r"val\.jsonl, line 2 is not UTF-8 text"):
        load("boolq", tmp_path)


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    write_release(tmp_path, CASES["piqa"])
    (labels,) = tmp_path.rglob("valid-labels.lst")
    labels.unlink()
    with pytest.raises(UserError, match=r"its labels are not there; expected valid-labels\.lst beside it"):
        load("piqa", tmp_path)


def test_tables_that_are_wrong_are_one_line(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_saved(tmp_path, CASES["boolq"])
    (path,) = (tmp_path / "any name" / "validation").glob("*.arrow")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"data-00000-of-00001\.arrow is not valid Arrow"):
        load("boolq", tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"data-00000-of-00001\.arrow is not there"):
        load("boolq", tmp_path)


@pytest.mark.parametrize("fields", [{"passage": None}, {"label": 7}, {"passage": 3}, {"question": ""}])
def test_rows_of_tables_that_are_wrong_are_one_line(fields: dict[str, object], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    case = CASES["boolq"]
    rows = [{**case.hub_rows["validation"][0], **fields}]
    write_snapshot(tmp_path, dataclasses.replace(case, hub_rows={**case.hub_rows, "validation": rows}))
    with pytest.raises(
        UserError, match=rf"parquet, row 0: '{next(iter(fields))}' is (null|7|a number|empty); expected"
    ):
        load("boolq", tmp_path)


def test_a_table_of_stories_in_another_order_is_read(tmp_path: Path) -> None:
    head = ["AnswerRightEnding", "RandomFifthSentenceQuiz2", "RandomFifthSentenceQuiz1", "InputSentence4"]
    head += ["InputSentence3", "InputSentence2", "InputSentence1", "InputStoryid"]
    path = tmp_path / "cloze_test_test__spring2016.csv"
    path.write_text("\ufeff" + table(head, ["2", "F.", "E.", "D.", "C.", "B, b.", "A.", "7"]), encoding="utf-8")
    (item,) = load("storycloze", tmp_path).test
    assert (item.id, item.context, item.completion) == ("7", "A. B, b. C. D.", "F.")


# ---- documentation


@pytest.mark.parametrize("name", CASES)
def test_the_readme_has_the_tasks_files_and_settings(name: str) -> None:
    text = (Path(gpt3_jax.__file__).parent / "evals" / "README.md").read_text(encoding="utf-8")
    task, case = TASKS[name], CASES[name]
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
    assert f"| {task.shots} |" in row and f"| {', '.join(task.metrics)} |" in row and f"`{case.hub[0]}`" in row
    for file in re.findall(r"`([^`]+)`", row.split("|")[2]):
        last = file.rpartition("/")[2].replace("*", ".*")
        assert any(re.search(f"{last}$", each) for each in case.files), file
    for each in task.open:
        lines = [line for line in text.splitlines() if line.startswith(f"| `{each.name}` |") and each.why in line]
        value = str(task.setting(each.name)).replace("\n", "\\n")
        assert any(value in line for line in lines) or each.name == "max_tokens", each.name
