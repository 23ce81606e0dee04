"""News: prompts and choices by hand, articles of a checkpoint, the quiz's page and its key, scores by hand."""

from __future__ import annotations

import base64
import html.parser
import json
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from random_run import write_run

from gpt3_jax.cli import main as front
from gpt3_jax.errors import UserError
from gpt3_jax.generation import Generator, Sample
from gpt3_jax.probes.articles import STOP, Article, nearest, prompt, read_articles
from gpt3_jax.probes.news import ARTICLES
from gpt3_jax.probes.quiz import KEY, SCALE, Key, key_to_json, keys_before, make_quiz, read_key
from gpt3_jax.probes.quiz_scores import FORMAT, Row, score

TITLES = [f"{what} opens" for what in ("Harbour", "Library", "Orchard", "Bridge", "Café </script><b>", "Museum & shop")]
TEXT = "The town woke to it on Monday. Nobody had expected so much."


def write_articles(path: Path, titles: list[str] = TITLES) -> Path:
    rows = [{"title": t, "subtitle": f"It is number {n}", "article": TEXT[: 40 + n]} for n, t in enumerate(titles)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, articles, and what it wrote, with itself as the control."""
    folder = tmp_path_factory.mktemp("news")
    write_run(folder / "run", n_ctx=512)
    write_articles(folder / "articles.jsonl")
    assert front.main(command(folder, folder / "out")) == 0
    return folder


def command(folder: Path, out: Path) -> list[str]:
    argv = ["news", "write", folder / "run", "--articles", folder / "articles.jsonl", "--out", out]
    return [*map(str, argv), "--control", str(folder / "run"), "--in-context", "2", "--samples", "3", "--seed", "4"]


# -- articles ----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_the_articles_of_the_context_and_a_heading() -> None:
    one, two = Article("A", "a", "First."), Article("B", "b", "Second.")
    assert prompt(two, [one]) == "Title: A\nSubtitle: a\nArticle: First.\n\nTitle: B\nSubtitle: b\nArticle:"
    assert prompt(two, []) == "Title: B\nSubtitle: b\nArticle:"


def test_the_sample_nearest_in_words_is_kept() -> None:
    assert nearest(["a b c d e", "a b", "a b c d"], words=3) == 1, "of two equally near the first"
    assert nearest(["a b c d e", "a b", "a b c d"], words=4) == 2


def test_articles_are_what_the_generator_writes(made: Path) -> None:
    records = [json.loads(line) for line in (made / "out" / ARTICLES).read_text().splitlines()]
    articles = read_articles(str(made / "articles.jsonl"))
    assert [(r["model"], r["title"]) for r in records] == [(m, t) for m in ("run", "run (2)") for t in TITLES[2:]]
    generator = Generator.load(made / "run")
    tokens = int(1.5 * (1 + len(articles[-1].text)))
    for record, article in zip(records[:4], articles[2:], strict=True):
        asked = prompt(article, articles[:2])
        assert record["prompt"] == asked and record["human_words"] == article.words
        samples = [Sample(1.0, 0, 0.9, 4, n) for n in range(3)]
        ids = generator.tokenizer.encode(asked)
        found = [next(generator.complete([ids], STOP, tokens, sample))[1] for sample in samples]
        assert [each["text"] for each in record["samples"]] == [each.text.strip() for each in found]
        apart = [abs(each["words"] - article.words) for each in record["samples"]]
        assert apart[record["chosen"]] == min(apart)
    control = records[4:]
    assert all(
        each["control"] and each["prompt"] == prompt(a, []) for each, a in zip(control, articles[2:], strict=True)
    )
    models = json.loads((made / "out" / "results.json").read_text())["models"]
    assert [(m["writing"]["temperature"], m["writing"]["top_p"]) for m in models] == [(1.0, 0.9), (1.5, 1.0)]


def test_writing_goes_on_where_it_was_interrupted(made: Path, tmp_path: Path, said: list[str]) -> None:
    lines = (made / "out" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "answers.jsonl").write_bytes(b"".join(lines[:5]))
    assert front.main(command(made, tmp_path)) == 0
    assert "run: news: 7 requests, 5 more were answered before" in said
    for name in (ARTICLES, KEY, *(each.name for each in tmp_path.glob("quiz-*.html"))):
        assert (tmp_path / name).read_bytes() == (made / "out" / name).read_bytes()


# -- the quiz ----------------------------------------------------------------------------------------------------------


class Page(html.parser.HTMLParser):
    """The scripts of a page, the addresses in it, and whether its tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.addresses: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href", "action")]
        if tag not in ("meta", "link", "input", "br"):
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def test_the_page_stands_alone_and_holds_the_articles_as_they_are(made: Path) -> None:
    pages = sorted((made / "out").glob("quiz-*.html"))
    assert len(pages) == 2
    keys = json.loads((made / "out" / KEY).read_text())["quizzes"]
    for path in pages:
        text = path.read_text()
        page = Page()
        page.feed(text)
        assert not page.open and not page.addresses and "http://" not in text and "https://" not in text
        assert "default-src 'none'" in text
        data = json.loads(page.scripts[0])
        assert len(page.scripts) == 2 and data["scale"] == list(SCALE)
        assert [item["title"] for item in data["items"]] == keys[data["quiz"]]["titles"]
        assert sorted(item["title"] for item in data["items"]) == sorted(TITLES[2:])
        # Nothing in the page's data says which are the machine's, but for the encoded key.
        assert set(data) == {"quiz", "scale", "items", "key"} and "machine" not in json.dumps(data["items"])
        assert keys[data["quiz"]]["model"] not in text.replace("</script", "")[: text.index("<script")]


def page_key(data: dict[str, str]) -> list[bool]:
    """As the page's script decodes it."""
    found, quiz = base64.b64decode(data["key"]), data["quiz"]
    masks = [(ord(quiz[n % len(quiz)]) * 31 + n * 17) % 256 for n in range(len(found))]
    return [(a ^ b).bit_count() % 2 == 1 for a, b in zip(found, masks, strict=True)]


def test_a_pages_key_is_in_the_order_of_its_articles() -> None:
    for seed in range(5):
        quiz = make_quiz("m", [(Article(str(n), "s", "h"), "m") for n in range(6)], seed)
        page = Page()
        page.feed(quiz.html())
        assert page_key(json.loads(page.scripts[0])) == [item.machine for item in quiz.items]


def test_the_key_of_the_page_is_that_of_the_file(made: Path) -> None:
    keys = read_key(str(made / "out"))
    articles = {
        (r["model"], r["title"]): r for r in map(json.loads, (made / "out" / ARTICLES).read_text().splitlines())
    }
    for quiz, key in keys.items():
        page = Page()
        page.feed((made / "out" / f"quiz-{quiz}.html").read_text())
        data = json.loads(page.scripts[0])
        assert page_key(data) == list(key.machine)
        assert sum(key.machine) == 2
        for item, machine in zip(data["items"], key.machine, strict=True):
            record = articles[key.model, item["title"]]
            assert (item["text"] == record["samples"][record["chosen"]]["text"]) == machine


def test_the_pages_script_reads_the_key_so(made: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for quiz, key in read_key(str(made / "out")).items():
        page = Page()
        page.feed((made / "out" / f"quiz-{quiz}.html").read_text())
        functions = re.findall(r"^function (?:parity|isMachine).*?^}", page.scripts[1], re.MULTILINE | re.DOTALL)
        assert len(functions) == 2
        program = f"const data = {page.scripts[0]};\n" + "\n".join(functions)
        program += "\nconsole.log(JSON.stringify(data.items.map((_, place) => isMachine(place))));"
        out = subprocess.run([node, "-e", program], capture_output=True, text=True, check=True).stdout
        assert json.loads(out) == list(key.machine)


def test_half_of_a_quiz_is_the_models_and_one_quiz_does_not_give_away_another() -> None:
    human = [Article(str(n), "s", f"human {n}") for n in range(5)]
    one, two = (make_quiz(model, [(each, f"{model} text") for each in human], seed=3) for model in ("one", "two"))
    assert sum(item.machine for item in one.items) == 3 and one.id != two.id
    assert [i.title for i in one.items] != [i.title for i in two.items]
    quizzes = [make_quiz(str(n), [(each, "text") for each in human], seed=3) for n in range(9)]
    assert len({frozenset(i.title for i in quiz.items if i.machine) for quiz in quizzes}) > 3
    assert all(item.text == ("one text" if item.machine else f"human {item.title}") for item in one.items)
    others = {
        tuple(item.machine for item in make_quiz("one", [(a, "x") for a in human], seed).items) for seed in range(9)
    }
    assert len(others) > 1


def test_quizzes_that_were_made_before_keep_their_keys() -> None:
    human = [Article(str(n), "s", "h") for n in range(6)]
    one, two = (make_quiz("m", [(each, "m") for each in human], seed) for seed in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        for each in (one, two):
            (Path(folder) / KEY).write_text(key_to_json([each], keys_before(Path(folder))))
        keys = read_key(folder)
    assert {quiz.id: tuple(item.machine for item in quiz.items) for quiz in (one, two)} == {
        quiz: key.machine for quiz, key in keys.items()
    }


# -- scores ------------------------------------------------------------------------------------------------------------


def write_answers(folder: Path, **answers: tuple[str, list[int]]) -> list[str]:
    for participant, (quiz, given) in answers.items():
        data = {
            "format": FORMAT,
            "version": 1,
            "quiz": quiz,
            "participant": participant,
            "answers": given,
            "seconds": 9,
        }
        (folder / f"{participant}.json").write_text(json.dumps(data))
    return [str(folder / f"{participant}.json") for participant in answers]


def test_the_papers_statistics_by_hand(tmp_path: Path) -> None:
    machine = (True, False, True, False)
    keys = {"q": Key("xl", False, machine), "c": Key("small", True, machine)}
    paths = write_answers(
        tmp_path,
        a=("q", [5, 1, 1, 3]),  # right, right, wrong, neutral: 2 of 3
        b=("q", [4, 5, 3, 3]),  # right, wrong: 1 of 2
        d=("q", [3, 3, 3, 3]),  # never guessed
        e=("c", [5, 2, 4, 1]),  # all right
        f=("c", [5, 2, 4, 4]),  # 3 of 4
    )
    control, row = score(keys, paths).rows
    assert (control.model, row.model) == ("small", "xl")
    assert list(row.accuracies) == [pytest.approx(2 / 3), 0.5] and row.all_neutral == 1
    assert row.dont_know == pytest.approx(7 / 12) and control.dont_know == 0
    # Two values 1/6 apart: s = (1/6) / sqrt(2), s / sqrt(2) = 1/12; Student's t for one degree of freedom is 12.706.
    mean = 7 / 12
    assert row.interval is not None and row.accuracy == pytest.approx(mean)
    assert list(row.interval) == [0, 1], "12.7062 / 12 on either side reaches beyond"
    # Pooled variance of 1/72 and 1/32; t over two degrees of freedom has p = 1 - t / sqrt(2 + t²).
    t = (0.875 - mean) / math.sqrt((1 / 72 + 1 / 32) / 2)
    assert row.t == pytest.approx(t) and row.p == pytest.approx(1 - t / math.sqrt(2 + t * t))
    assert control.t is None
    table = score(keys, paths).table()
    assert "small (control)" in table and "83–90" in table and "1 participants never guessed" in table


def test_the_confidence_interval_by_hand() -> None:
    # Deviations from the mean of 0.625; Student's t for three degrees of freedom is 3.18245.
    row = Row("m", False, (0.5, 0.7, 0.6, 0.7), 0, 0.0)
    s = math.sqrt((0.125**2 + 2 * 0.075**2 + 0.025**2) / 3)
    assert row.interval is not None and row.interval[0] == pytest.approx(0.625 - 3.18245 * s / 2, abs=1e-5)
    assert Row("m", False, (0.5,), 0, 0.0).interval is None
    # 0.95 +- 12.7 * 0.05: no share is above 1
    cut = Row("m", False, (0.9, 1.0), 0, 0.0).interval
    assert cut is not None and cut[0] == pytest.approx(0.95 - 12.7062 * 0.05, abs=1e-4) and cut[1] == 1


def test_the_command_scores_files(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (quiz, key), *_ = read_key(str(made / "out")).items()
    right = [5 if machine else 1 for machine in key.machine]
    paths = write_answers(tmp_path, a=(quiz, right), b=(quiz, [*right[:-1], 3]))
    assert front.main(["news", "score", str(made / "out"), *paths, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["models"]
    assert row["accuracy"] == 1 and row["dont_know"] == 1 / 8 and row["interval"] == [1, 1]
    assert front.main(["news", "score", str(made / "out"), *paths]) == 0
    assert "the paper, articles of about 500 words" in capsys.readouterr().out


# -- mistakes ----------------------------------------------------------------------------------------------------------

GOOD = '{"title": "A", "subtitle": "b", "article": "c"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        (b"", "has no articles"),
        (b"\n\n", "has no articles"),
        (b"Title: A\n", "line 1 is not JSON"),
        (b'["A", "b", "c"]\n', "line 1 is a JSON list; expected an object"),
        (GOOD.encode() + b"\n{}\n", "line 3: 'title' is missing"),
        (b'{"title": "A", "article": "c"}\n', "line 1: 'subtitle' is missing"),
        (b'{"title": "A", "subtitle": "b", "article": null}\n', "'article' is null; expected text"),
        (b'{"title": "A", "subtitle": "b", "article": " "}\n', "'article' is \" \"; expected text"),
        (b'{"title": "A\\nB", "subtitle": "b", "article": "c"}\n', "the title has several lines"),
        (b'{"title": "A", "subtitle": "b", "article": "c\\nTitle: d"}\n', "a line that begins with 'Title:'"),
        (GOOD.encode() * 2, "line 2: the title 'A' stands there before"),
        (b"\xff\xfe{\x00", "it looks like UTF-16 text"),
    ],
)
def test_broken_articles_end_in_one_line(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "articles.jsonl"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_articles(str(file))
    assert message in str(caught.value) and "\n" not in str(caught.value)


ANSWERS = {"format": FORMAT, "quiz": "q", "participant": "a", "answers": [1, 5]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not there"),
        ("", "is not JSON"),
        ("[1]", "is a JSON list"),
        ({"format": "other"}, "is not a file of answers"),
        ({"quiz": "z"}, "is of the quiz 'z', which is not one of this folder: q"),
        ({"quiz": 1}, "is of the quiz 1"),
        ({"participant": ""}, "participant is ''"),
        ({"answers": [1]}, "has 1 answers; the quiz has 2 articles"),
        ({"answers": "15"}, "has no list of answers"),
        ({"answers": [0, 5]}, "answer 1 is 0; expected 1 to 5"),
        ({"answers": [1, 6]}, "answer 2 is 6; expected 1 to 5"),
        ({"answers": [True, 5]}, "answer 1 is True"),
    ],
)
def test_broken_answers_end_in_one_line(content: str | dict[str, object] | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.json"
    if content is not None:
        file.write_text(content if isinstance(content, str) else json.dumps(ANSWERS | content))
    with pytest.raises(UserError) as caught:
        score({"q": Key("m", False, (True, False))}, [str(file)])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_participant_counts_once(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text(json.dumps(ANSWERS))
    with pytest.raises(UserError, match="is of the same participant as"):
        score({"q": Key("m", False, (True, False))}, [str(tmp_path / name) for name in ("one.json", "two.json")])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["write", "m", "--articles", "none", "--out", "o"], "none is not there"),
        (["write", "m", "--articles", "a", "--out", "o", "--in-context", "-1"], "--in-context is -1"),
        (
            ["write", "m", "--articles", "a", "--out", "o", "--in-context", "6"],
            "a has 6 articles; 6 go into the context",
        ),
        (["write", "m", "--articles", "a", "--context", "a", "--out", "o"], "'Harbour opens' is in both files"),
        (["write", "m", "--articles", "a", "--out", "o", "--samples", "0"], "samples is 0"),
        (["write", "m", "--articles", "a", "--out", "o", "--longest", "0.5"], "longest is 0.5"),
        (["write", "m", "--articles", "a", "--out", "o", "--top-p", "2"], "top_p is 2.0"),
        (["write", "m", "--articles", "a", "--out", "o", "--control-temperature", "-1"], "temperature is -1.0"),
        (["score", ".", "x.json"], "quizzes.json is not there"),
        (["score", "unfinished", "x.json"], "unfinished has no quizzes.json: gpt3-jax news write has not finished"),
        (["score", "bad", "x.json"], "quizzes.json is no key of quizzes"),
        (["score", "damaged", "x.json"], "quizzes.json is damaged"),
        (["score", ".", "x.json", "--parallel.data", "1"], "--parallel.data is for news write"),
    ],
)
def test_mistakes_end_in_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_articles(tmp_path / "a")
    for name, text in {"bad": "{}", "damaged": '{"format": "gpt3_jax news quizzes", "quizzes": {"q": 1}}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / KEY).write_text(text)
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "answers.jsonl").touch()
    assert front.main(["news", *argv]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_article_that_does_not_fit_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    articles = write_articles(tmp_path / "a", [f"{title} {'very ' * 20}" for title in TITLES])
    argv = ["news", "write", made / "run", "--articles", articles, "--out", tmp_path / "out", "--in-context", "4"]
    assert front.main([str(each) for each in argv]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "with 4 articles in context, its context of 512 tokens leaves 0" in line and "--in-context" in line
    assert not (tmp_path / "out").exists()
