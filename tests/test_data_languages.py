"""`gpt3-jax data languages`: counts by hand, the published form, and every way to read a corpus."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest

from gpt3_jax.cli import main as front
from gpt3_jax.data.documents import Options
from gpt3_jax.data.languages import UNKNOWN, Statistics, count_languages, detector, part_of, write_csvs
from gpt3_jax.errors import RunError, UserError

pytest.importorskip("pycld2")

ENGLISH = "The dog runs across the street and is happy about the weather."
GERMAN = "Der Hund läuft über die Straße und freut sich über das schöne Wetter."
CHINESE = "這是一個繁體中文的句子，內容很短，但是足夠讓人看懂。"
HEBREW = "שלום לכולם, היום אנחנו הולכים לשוק כדי לקנות ירקות ופירות."
DOCUMENTS = [ENGLISH, GERMAN, ENGLISH, CHINESE, "12 34 !?", HEBREW]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    file = tmp_path / "corpus.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*DOCUMENTS, "", "\n"]))
    return file


def test_counts_by_hand(corpus: Path) -> None:
    found = count_languages([str(corpus)])
    assert found.documents == {"en": 2, "de": 1, "zh-Hant": 1, "iw": 1, UNKNOWN: 1}
    assert found.words["en"] == 2 * 12 and found.words["de"] == 13 and found.words["zh-Hant"] == 1
    assert found.words[UNKNOWN] == 3 and found.characters[UNKNOWN] == 8
    assert found.characters["zh-Hant"] == len(CHINESE) == 26, "code points, not bytes"
    assert found.left_out.counts == {"empty": 2}


def test_the_published_form() -> None:
    found = Statistics()
    for text, language in (("a b c", "en"), ("d e", "en"), ("é", "fr"), ("f", "de")):
        found.add(text, language)
    assert found.csv("document") == (
        "language,number of documents,percentage of total documents\nen,2,50.00000%\nde,1,25.00000%\nfr,1,25.00000%\n"
    )
    assert found.csv("word").splitlines()[:2] == [
        "language,number of words,percentage of total words",
        "en,5,71.42857%",
    ]
    assert found.csv("character").splitlines()[1:] == ["en,8,80.00000%", "de,1,10.00000%", "fr,1,10.00000%"]


def test_the_files_have_the_papers_names(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert front.main(["data", "languages", str(corpus), "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "languages_by_character_count.csv",
        "languages_by_document_count.csv",
        "languages_by_word_count.csv",
    ]
    assert "93.69" in captured.out and "6 documents" in captured.out and "2 empty" in captured.err
    assert front.main(["data", "languages", str(corpus), "--workers", "1", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["languages"]["iw"] == {"documents": 1, "words": len(HEBREW.split()), "characters": len(HEBREW)}
    assert data["total"]["documents"] == 6 and data["left_out"] == {"empty": 2}


def test_all_formats_and_numbers_of_workers_count_alike(corpus: Path, tmp_path: Path) -> None:
    expected = count_languages([str(corpus)])
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    (tmp_path / "corpus.txt").write_text("\n---\n".join(DOCUMENTS))
    for other in (
        count_languages([str(tmp_path / "corpus.jsonl.gz")], workers=2),
        count_languages([str(tmp_path / "corpus.txt")], options=Options(split_on="\n---\n")),
    ):
        assert [other.csv(kind) for kind in ("document", "word", "character")] == [
            expected.csv(kind) for kind in ("document", "word", "character")
        ]


def test_shards_count_as_their_text(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "tokens")
    argv = ["data", "tokenize", str(corpus), "--out", out, "--tokenizer", "bytes", "--workers", "1"]
    assert front.main([*argv, "--shard-tokens", "100"]) == 0
    found, expected = count_languages([out]), count_languages([str(corpus)])
    assert found.as_data()["languages"] == expected.as_data()["languages"]
    both = count_languages([out, str(corpus)], workers=2)
    assert both.documents["en"] == 4
    capsys.readouterr()
    assert front.main(["data", "languages", out, out, "--workers", "1"]) == 2
    assert "is given twice" in capsys.readouterr().err
    assert front.main(["data", "languages", out, "--tokenizer", "nothing", "--workers", "1"]) == 2


def test_of_a_long_document_thirds_are_looked_at() -> None:
    text = "a" * 100 + "b" * 100 + "c" * 100
    assert part_of(text, 9) == "aaa\nbbb\nccc" and part_of(text, 0) == part_of(text, 300) == text
    assert part_of("12345", 1) == "1\n3\n5"


def test_a_long_document_is_counted_whole(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text((GERMAN + "\n") * 500)
    found = count_languages([str(tmp_path / "long.txt")], look_at=600)
    assert found.documents == {"de": 1} and found.characters["de"] == 500 * (len(GERMAN) + 1)


def test_characters_that_the_detector_refuses_do_not_matter() -> None:
    detect = detector()
    for strange in ("\x00", "\x01", "\x85", "\ufffe", "\U000e0000"):
        assert detect(f"{ENGLISH}{strange}{ENGLISH}") == "en"


def test_what_is_not_found_is_unknown() -> None:
    detect = detector()
    assert [detect(text) for text in ("", "12 34", "\x00\x01", "ab")] == [UNKNOWN] * 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.txt"], "no file matches none.txt"),
        (["corpus.pdf"], "unknown extension"),
        (["empty.txt"], "there is no document to count"),
        (["folder"], "has no"),
        (["broken.jsonl"], "broken.jsonl, line 1: not JSON"),
        (["list.jsonl"], "line 1: a JSON array"),
        (["null.jsonl"], "'text' is null"),
        (["good.jsonl", "--text-key", "body"], "no key 'body'"),
        (["latin.txt"], "is not UTF-8 at byte 3"),
        (["good.jsonl", "good.jsonl"], "is given twice"),
        (["good.jsonl", "--out", "good.jsonl"], "cannot make the folder good.jsonl"),
        (["good.jsonl", "--workers", "0"], "workers is 0; expected at least 1"),
        (["good.jsonl", "--look-at", "-1"], "look_at is -1; expected at least 0"),
    ],
)
def test_mistakes_end_in_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"empty.txt": b"", "corpus.pdf": b"x", "broken.jsonl": b"{\n", "list.jsonl": b"[]\n"}
    files |= {"null.jsonl": b'{"text": null}\n', "good.jsonl": b'{"text": "a"}\n', "latin.txt": b"caf\xe9"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    assert front.main(["data", "languages", *argv]) == (1 if "--out" in argv else 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_detector_that_is_not_installed_ends_in_one_line(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector.cache_clear()
    monkeypatch.setitem(sys.modules, "pycld2", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '.\[languages\]'"):
        count_languages([str(corpus)])


def test_bad_documents_can_be_skipped(tmp_path: Path) -> None:
    (tmp_path / "mixed.jsonl").write_text(json.dumps({"text": ENGLISH}) + '\n{"text": 3}\nnot json\n')
    found = count_languages([str(tmp_path / "mixed.jsonl")], options=Options(on_error="skip"))
    assert found.documents == {"en": 1} and found.left_out.counts == {"not JSON": 1, "not text": 1}


def test_a_folder_that_cannot_be_written_ends_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write into"):
        write_csvs(Statistics(), tmp_path / "file")
