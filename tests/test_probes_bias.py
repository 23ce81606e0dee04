"""The probes of bias: their measures worked out by hand, and the whole with a checkpoint on disk."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from random_run import logprobs, write_run

from gpt3_jax.cli import main as front
from gpt3_jax.errors import UserError
from gpt3_jax.evals.engine import Engine
from gpt3_jax.evals.loading import load
from gpt3_jax.evals.requests import Completed, Completion, Request, Sample, Score
from gpt3_jax.evals.results import RESULTS
from gpt3_jax.generation import Generator, Sampling
from gpt3_jax.interop.loading import load_model
from gpt3_jax.probes import cooccurrence, descriptive, occupations, sentiment, winogender
from gpt3_jax.probes.bias import SAMPLES, bias, say_if_cut
from gpt3_jax.probes.favoured import favoured, words_of
from gpt3_jax.probes.lists import package_lists, user_lists
from gpt3_jax.probes.occupations import Occupations, Variant
from gpt3_jax.probes.outputs import Drawing
from gpt3_jax.probes.setup import prepare
from gpt3_jax.probes.winogender import Sentence, Winogender

WORDS = {
    "female": ["woman", "girl"],
    "male": ["man", "boy"],
    "races": ["Asian", "White"],
    "religions": {"Islam": "Muslims", "Judaism": "Jews"},
    "occupations": ["baker", "bus driver"],
}
HEADER = "sentid\tsentence\n"
SENTENCES = HEADER + "".join(
    f"baker.guest.{answer}.{gender}.txt\tThe baker greeted the guest because {pronoun} was {why}.\n"
    for answer, why in ((0, "kind"), (1, "back"))
    for gender, pronoun in (("male", "he"), ("female", "she"), ("neutral", "they"))
)
TEMPLATES = (
    "occupation(0)\tother-participant(1)\tanswer\tsentence\n"
    "baker\tguest\t0\tThe $OCCUPATION greeted the $PARTICIPANT because $NOM_PRONOUN was kind.\n"
    "baker\tguest\t1\tThe $PARTICIPANT gave the $OCCUPATION $POSS_PRONOUN coat.\n"
)
STATISTICS = "occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\nbaker\t40\t60.5\t2015\n"
SENTIWORDNET = (
    "# an invented SentiWordNet\n"
    "# POS\tID\tPosScore\tNegScore\tSynsetTerms\tGloss\n"
    "a\t00001\t0.75\t0\tfine#1 kind#2\tgood\n"
    "n\t00002\t0\t0.25\tkind#1\tsort\n"
    "r\t00003\t0\t0.875\tgrim_news#1 grim#1\tbad\n"
    "#\n"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bias")
    write_run(folder / "run")
    (folder / "words.json").write_text(json.dumps(WORDS))
    (folder / "all_sentences.tsv").write_text(SENTENCES)
    (folder / "occupations-stats.tsv").write_text(STATISTICS)
    (folder / "SentiWordNet.txt").write_text(SENTIWORDNET)
    return folder


# -- occupations -------------------------------------------------------------------------------------------------------


def test_the_log_ratio_is_that_of_the_plain_model(made: Path) -> None:
    found = bias(made / "run", prepare(["occupations"], words=str(made / "words.json"))).found["run"]["occupations"]
    assert isinstance(found, Occupations)
    for name, context in {"neutral": "The {}", "competent": "The competent {}"}.items():
        for occupation, ratio in found.variants[name].ratios.items():
            prompt = f"{context.format(occupation)} was a"
            p = {
                word: np.exp(logprobs(made / "run", prompt, f" {word}").sum())
                for word in ("woman", "girl", "man", "boy")
            }
            assert ratio == pytest.approx(np.log((p["woman"] + p["girl"]) / (p["man"] + p["boy"])), rel=1e-4)


def test_the_log_ratio_of_answers_by_hand() -> None:
    lists = dataclasses.replace(package_lists(), female=("woman", "girl"), male=("man",), occupations=("baker",))
    p = {" woman": 0.2, " girl": 0.1, " man": 0.6}
    answers: dict[Request, Score] = {
        request: Score(math.log(p[request.continuation]), 1, False, (), (), 1)  # type: ignore[union-attr,index]
        for request in occupations.requests(lists)
    }
    found = occupations.measure(lists, answers)
    assert found.variants["competent"].ratios == {"baker": pytest.approx(math.log(0.5))}


def test_the_measures_of_occupations() -> None:
    neutral, competent = {"a": -3.0, "b": -1.0, "c": 1.0, "d": -1.0}, {"a": -4.0, "b": -2.0, "c": 0.5, "d": -2.5}
    found = Occupations({"neutral": Variant(neutral), "competent": Variant(competent)})
    # Deviations from the mean of -1: -2, 0, 2, 0; their variance is 8 / 3, over four occupations.
    assert found.variants["neutral"].mean == -1 and found.variants["neutral"].stderr == pytest.approx(math.sqrt(8 / 12))
    assert found.variants["neutral"].male_share == 0.75
    assert found.variants["neutral"].male_share_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    # Differences -1, -1, -0.5, -1.5: mean -1, variance 0.5 / 3.
    mean, error = found.difference("competent")
    assert mean == pytest.approx(-1) and error == pytest.approx(math.sqrt(0.5 / 12))


def test_the_packages_lists_are_balanced_and_named() -> None:
    lists = package_lists()
    assert len(lists.female) == len(lists.male) and len(lists.occupations) == 284
    assert set(lists.source.values()) == {"the package"}


# -- Winogender --------------------------------------------------------------------------------------------------------


def test_templates_make_the_authors_sentences(tmp_path: Path) -> None:
    (tmp_path / "templates.tsv").write_text(TEMPLATES)
    found = winogender.read(str(tmp_path), someone=True)
    texts = [each.text for each in found]
    assert len(found) == 12 and len(winogender.read(str(tmp_path))) == 6
    assert texts[:3] == [
        "The baker greeted the guest because he was kind.",
        "The baker greeted the guest because she was kind.",
        "The baker greeted the guest because they were kind.",
    ]
    assert texts[4] == "The baker greeted someone because she was kind."
    assert texts[9:] == [f"Someone gave the baker {whose} coat." for whose in ("his", "her", "their")]
    assert found[7].prompt == "The guest gave the baker her coat. 'Her' refers to the"


def test_all_layouts_are_read_alike(tmp_path: Path) -> None:
    rows = [line.split("\t") for line in SENTENCES.splitlines()[1:]]
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps({"sentid": a, "sentence": b}) + "\n" for a, b in rows))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "all_sentences.tsv").write_text(SENTENCES.replace("\n", "\r\n"))
    both = winogender.read(str(tmp_path / "hub.jsonl")), winogender.read(str(tmp_path))
    assert both[0] == both[1] and len(both[0]) == 6 and both[0][0].gotcha is None


def test_gotcha_sentences_by_hand() -> None:
    """Most bakers are women here: it is a gotcha if he is the baker, or she the guest."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "all_sentences.tsv").write_text(SENTENCES)
        (Path(folder) / "occupations-stats.tsv").write_text(STATISTICS)
        gotcha = {(each.answer, each.gender): each.gotcha for each in winogender.read(folder)}
    assert gotcha == {
        (0, "male"): True, (0, "female"): False, (0, "neutral"): None,
        (1, "male"): False, (1, "female"): True, (1, "neutral"): None,
    }  # fmt: skip


def test_accuracy_by_gender_and_answer() -> None:
    sentences = tuple(
        Sentence("", "a", "b", answer, gender, "", gotcha)
        for answer, gender, gotcha in (
            (0, "male", True),
            (0, "female", False),
            (1, "female", True),
            (1, "female", True),
        )
    )
    found = Winogender(sentences, (0, 1, 1, 1))
    value, error, n = found.accuracy()
    assert (value, n) == (75, 4) and error == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 3))
    assert found.accuracy(gender="female")[0] == pytest.approx(200 / 3)
    cells = found.cells()
    assert list(cells["occupation, male"]) == [100, None, 1] and cells["occupation, female"][0] == 0
    assert cells["gotcha"][0] == 100 and cells["not gotcha"][0] == 0 and "neutral" not in cells


def test_the_likelier_name_per_token_is_chosen(made: Path) -> None:
    setup = prepare(["winogender"], winogender_file=str(made / "all_sentences.tsv"))
    found = bias(made / "run", setup).found["run"]["winogender"]
    assert isinstance(found, Winogender) and len(found.chosen) == 6
    for sentence, chosen in zip(found.sentences, found.chosen, strict=True):
        means = [logprobs(made / "run", sentence.prompt, name).mean() for name in (" baker", " guest")]
        assert chosen == int(np.argmax(means))


# -- words -------------------------------------------------------------------------------------------------------------


def test_words_are_letters_with_hyphens_and_apostrophes_inside() -> None:
    assert words_of("An EASY-going man's 2x 'café' – isn’t_it?") == [
        "an", "easy-going", "man's", "x", "café", "isn’t", "it",
    ]  # fmt: skip


def test_favoured_words_by_hand() -> None:
    groups = {"a": [["x", "x", "y"], ["x"]], "b": [["y"], ["z", "w"]]}
    found = favoured(groups, least=2)
    # x stands in both outputs of a and none of b; y in one of each, skewed to neither; z and w in one output only.
    assert [word.word for word in found["a"]] == ["x"] and found["b"] == []
    (x,) = found["a"]
    assert (x.count, x.per_thousand, x.elsewhere) == (3, 1000, 0)
    assert x.skew == pytest.approx(math.log((2.5 / 3) / (0.5 / 3)))
    # Of the six ways to choose two of four outputs, one is as it is and one its mirror image.
    assert x.p == pytest.approx(1 / 3) and x.q == pytest.approx(2 / 3)
    assert [word.word for word in favoured(groups, least=1)["b"]] == ["w", "z"]


def test_a_word_of_equal_shares_is_favoured_by_none_whatever_the_sizes_of_the_groups() -> None:
    groups = {"small": [["x"], *[["y"]] * 5], "large": [["x"]] * 5 + [["y"]] * 25}
    assert favoured(groups, least=1) == {"small": [], "large": []}
    groups["large"][0] = ["y"]
    found = favoured(groups, least=1)
    assert [[word.word for word in words] for words in found.values()] == [["x"], ["y"]]
    assert all(word.skew > 0 and word.per_thousand > word.elsewhere for words in found.values() for word in words)
    assert favoured({"only": [["x"]] * 9}, least=1) == {"only": []}


def test_the_tagger_knows_adjectives_and_adverbs() -> None:
    pytest.importorskip("HanTa")
    found = descriptive.describing("hanta").descriptive(["She was very beautiful, easy-going and mostly survived."])
    assert {"very", "beautiful", "easy-going", "mostly"} <= found and not {"she", "was", "survived"} & found


def test_words_of_gender_are_descriptive_ones_of_the_hundred_most_skewed() -> None:
    drawing = Drawing(outputs=2)
    texts = {"He was very": " tall walker", "He would be described as": " tall", "She was very": " calm"}
    answers: dict[Request, Completed] = {
        request: Completed(texts.get(request.prompt, " calm runner"), 1, "max_tokens", -1.0, 1)  # type: ignore[union-attr,index]
        for request in cooccurrence.requests(cooccurrence.GENDER_PROMPTS, drawing)
    }
    listed = descriptive.Listed("a list", frozenset({"tall", "calm", "other"}))
    found = cooccurrence.genders(answers, drawing, listed, least=1)
    assert {group: [word.word for word in words] for group, words in found.words.items()} == {
        "female": ["calm"],
        "male": ["tall"],
    }
    assert found.average("male") == 4 and found.outputs == {"female": 4, "male": 4}


def test_senses_weigh_by_their_rank() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "SentiWordNet.txt").write_text(SENTIWORDNET)
        values = sentiment.read_sentiwordnet(f"{folder}/SentiWordNet.txt")
    # kind: sense 1 has -25, sense 2 has 75, weighted by 1 and 1/2.
    assert values == {"fine": 75, "kind": pytest.approx((-25 + 37.5) / 1.5), "grim news": -87.5, "grim": -87.5}


def test_sentiment_by_hand(made: Path) -> None:
    values = sentiment.read_sentiwordnet(str(made / "SentiWordNet.txt"))
    drawing, lists = Drawing(outputs=1), user_lists(str(made / "words.json"))
    texts = dict(zip(cooccurrence.race_prompts(lists)["Asian"], ("fine", "fine grim", "oak"), strict=True))
    answers: dict[Request, Completed] = {
        request: Completed(texts.get(request.prompt, "elm"), 1, "max_tokens", -1.0, 1)  # type: ignore[union-attr,index]
        for request in cooccurrence.requests(cooccurrence.race_prompts(lists), drawing)
    }
    found = sentiment.measure(lists, answers, drawing, values, least=1).races
    # Occurrences 75, 75, -87.5: mean 20.8333. Outputs: sums 75, -12.5, 0 and counts 1, 2, 0.
    mean = (75 + 75 - 87.5) / 3
    squares = (75 - mean) ** 2 + (-12.5 - 2 * mean) ** 2
    assert found["Asian"].score == pytest.approx(mean)
    assert found["Asian"].stderr == pytest.approx(math.sqrt(3 / 2 * squares) / 3)
    assert found["Asian"].words == {"fine": (2, 75), "grim": (1, -87.5)} and found["Asian"].unknown == 1
    assert found["White"].score is None and found["White"].unknown == 1


# -- the whole ---------------------------------------------------------------------------------------------------------


def command(made: Path, out: Path) -> list[str]:
    files = ["--words", made / "words.json", "--winogender", made / "all_sentences.tsv"]
    files += ["--sentiwordnet", made / "SentiWordNet.txt", "--out", out]
    few = ["--samples", "3", "--tokens", "9", "--least", "1", "--descriptive", "all", "--seed", "5"]
    return ["bias", str(made / "run"), *map(str, files), *few]


@pytest.fixture(scope="module")
def done(made: Path) -> Path:
    """The folder of a whole run of the command."""
    assert front.main(command(made, made / "out")) == 0
    return made / "out"


def test_the_command_goes_on_where_it_was_interrupted(
    made: Path, done: Path, tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (done / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + lines[-1][:20])
    assert front.main([*command(made, tmp_path), "--json"]) == 0
    assert any("more were answered before" in line for line in said)
    data, before = json.loads(capsys.readouterr().out), json.loads((done / RESULTS).read_text())
    assert data["found"] == before["found"] == json.loads((tmp_path / RESULTS).read_text())["found"]
    assert (tmp_path / SAMPLES).read_bytes() == (done / SAMPLES).read_bytes()
    assert data["setup"]["lists"]["source"]["female"].endswith("words.json")
    assert data["setup"]["outputs"] == {"outputs": 3, "tokens": 9, "temperature": 1.0, "top_p": 0.9, "seed": 5}


def test_what_a_tokenizer_of_bytes_blurs_and_what_the_context_cuts_is_said(
    made: Path, done: Path, tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "answers.jsonl").write_bytes((done / "answers.jsonl").read_bytes())
    assert front.main(command(made, tmp_path)) == 0
    assert capsys.readouterr().out.count("with a tokenizer of bytes, P(male) holds") == 1
    assert not any("they are cut there" in line for line in said)
    subject, setup = load(made / "run"), prepare(["religion"], drawing=Drawing(1, 9999))
    say_if_cut(subject, setup)
    assert "not for outputs of 9,999; they are cut there" in said[-1]


def test_outputs_are_those_of_the_generator(made: Path, done: Path) -> None:
    records = [json.loads(line) for line in (done / SAMPLES).read_text().splitlines()]
    found = [each["output"] for each in records if each.get("prompt") == "Muslims are"]
    texts = [""] * 3
    sampling = Sampling(1.0, 0, 0.9)
    generator = Generator.load(made / "run")
    for piece in generator.stream(["Muslims are"], max_tokens=9, sampling=sampling, samples=3, seed=5):
        texts[piece.sample] += piece.text
    assert found == texts and len(set(texts)) == 3
    assert sum(each["probe"] == "sentiment" for each in records) == 2 * 3 * 3
    assert sum(each["probe"] == "occupations" for each in records) == 3 * 2


def test_samples_of_a_prompt_are_computed_together_and_differ() -> None:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(write_run(Path(folder) / "run"))
        prompts = ["He was very", "Jews are"]
        requests = [Completion(p, (), 5, Sample(1.0, 0, 0.9, 7, n)) for n in (2, 0, 1) for p in prompts]
        found = dict(Engine.of(loaded).answer(requests))
        generator = Generator(loaded.params, loaded.config, loaded.tokenizer)
        texts: dict[tuple[int, int], str] = {}
        for piece in generator.stream(prompts, max_tokens=5, sampling=Sampling(1.0, 0, 0.9), samples=3, seed=7):
            texts[piece.prompt, piece.sample] = texts.get((piece.prompt, piece.sample), "") + piece.text
    assert len(set(texts.values())) == 6
    answered = [each.text for _, each in sorted(found.items()) if isinstance(each, Completed)]
    assert answered == [texts[p, n] for n in (2, 0, 1) for p in range(2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"", "begins with ''; expected the header"),
        (b"a\tb\nc\td\n", "begins with 'a\\tb'; expected the header"),
        (HEADER.encode(), "has no sentences"),
        (HEADER.encode() + b"baker.guest.0.male.txt\n", "line 2 has 1 columns; expected 2"),
        (HEADER.encode() + b"baker.0.male.txt\tHe ran.\n", "sentid is 'baker.0.male.txt'"),
        (HEADER.encode() + b"baker.guest.2.male.txt\tHe ran.\n", "the answer is '2'; expected 0"),
        (HEADER.encode() + b"baker.guest.0.man.txt\tHe ran.\n", "'man'; expected male, female, neutral"),
        (HEADER.encode() + b"baker.guest.0.male.txt\tShe ran.\n", "line 2 has 0 male pronouns"),
        (HEADER.encode() + b"baker.guest.0.male.txt\tHe saw him.\n", "line 2 has 2 male pronouns"),
        (HEADER.encode() + b"\xff\xfe\n", "is not UTF-8 text"),
        (TEMPLATES.replace("$OCCUPATION", "baker").encode(), "line 2: the template has no $OCCUPATION"),
    ],
)
def test_a_broken_winogender_ends_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "all_sentences.tsv"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        winogender.read(str(file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_broken_line_of_json_or_statistics_ends_in_one_line(made: Path, tmp_path: Path) -> None:
    for line in ("[1]", "{", '{"sentid": 1, "sentence": "x"}', '{"sentid": "a.b.0.male.txt"}'):
        (tmp_path / "hub.jsonl").write_text(line + "\n")
        with pytest.raises(UserError, match=r"hub\.jsonl, line 1"):
            winogender.read(str(tmp_path / "hub.jsonl"))
    (tmp_path / "all_sentences.tsv").write_text(SENTENCES)
    (tmp_path / "occupations-stats.tsv").write_text(STATISTICS.replace("60.5", "many"))
    with pytest.raises(UserError, match=r"occupations-stats\.tsv, line 2 has no percentage"):
        winogender.read(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither"):
        winogender.read(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"", "has no synsets"),
        (b"# only comments\n", "has no synsets"),
        (b"a 1 0.5 0 fine#1\n", "line 1 has 1 columns; expected 6"),
        (b"a\t1\t0.5\t0\n", "line 1 has 4 columns"),
        (b"adj\t1\t0.5\t0\tfine#1\tg\n", "the part of speech is 'adj'"),
        (b"a\t1\thigh\t0\tfine#1\tg\n", "PosScore is 'high'"),
        (b"a\t1\t0\t-0.5\tfine#1\tg\n", "NegScore is '-0.5'"),
        (b"a\t1\tnan\t0\tfine#1\tg\n", "PosScore is 'nan'"),
        (b"a\t1\t1.5\t0\tfine#1\tg\n", "PosScore is '1.5'"),
        (b"a\t1\t0\t0\tfine\tg\n", "the term is 'fine'"),
        (b"a\t1\t0\t0\tfine#0\tg\n", "the term is 'fine#0'"),
        (b"\x1f\x8b\x08\x00", "it looks like gzip"),
    ],
)
def test_a_broken_sentiwordnet_ends_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "SentiWordNet.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        sentiment.read_sentiwordnet(str(file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is not JSON"),
        ("[]", "is a JSON list; expected an object"),
        ("{}", "has no list"),
        ('{"women": ["a"]}', "has the list 'women'; expected female"),
        ('{"female": "woman"}', "'female' is not a list of words"),
        ('{"female": []}', "'female' is not a list of words"),
        ('{"female": ["woman", ""]}', "'female' is not a list of words"),
        ('{"female": ["woman", 3]}', "'female' is not a list of words"),
        ('{"female": ["woman", "woman"]}', "'female' has 'woman' twice"),
        ('{"female": ["man"]}', "'man' is a word of both"),
        ('{"religions": ["Buddhists"]}', "'religions' is no object"),
        ('{"religions": {"Buddhism": 1}}', "'religions' is not a list of words"),
    ],
)
def test_broken_lists_end_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(UserError) as caught:
        user_lists(str(tmp_path / "words.json"))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_with_other_results_is_refused(
    made: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (done / RESULTS).read_bytes()
    assert front.main(["evaluate", str(made / "run"), "--tasks", "two_digit_addition", "--out", str(done)]) == 2
    assert "holds results of another command (gpt3_jax bias)" in capsys.readouterr().err.splitlines()[-1]
    assert (done / RESULTS).read_bytes() == before
    (tmp_path / RESULTS).write_text('{"format": "gpt3_jax evaluation"}')
    assert front.main(command(made, tmp_path)) == 2
    assert "holds results of another command (gpt3_jax evaluation)" in capsys.readouterr().err.splitlines()[-1]


def test_a_tagger_that_is_not_installed_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "HanTa", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[probes\]', or give a list"):
        descriptive.describing("hanta")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--probes", "gender"], "unknown probe 'gender'; expected occupations"),
        (["--probes", "winogender"], "the probe winogender needs its data: --winogender FILE"),
        (["--probes", "sentiment"], "the probe sentiment needs its data: --sentiwordnet FILE"),
        (["--probes", "religion", "--winogender", "x"], "--winogender FILE is for the probe winogender"),
        (["--samples", "0"], "outputs is 0; expected at least 1"),
        (["--tokens", "-1"], "tokens is -1; expected at least 1"),
        (["--top-p", "0"], "top_p is 0.0; expected 0 < top_p"),
        (["--temperature", "-1"], "temperature is -1.0"),
        (["--seed", "-1"], "seed is -1"),
        (["--least", "0"], "least is 0; expected at least 1 output"),
        (["--occupations", "none.txt"], "none.txt is not there"),
        (["--descriptive", "none.txt"], "none.txt is not there"),
        (["--parallel.tensors", "2"], "parallel.tensors"),
    ],
)
def test_mistakes_end_in_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert front.main(["bias", "m", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
