"""N-grams of a corpus: words, what is found, in every format, however the text is cut."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpt3_jax.data.documents import Options
from gpt3_jax.data.tokenize import tokenize
from gpt3_jax.data.tokenizer import ByteTokenizer
from gpt3_jax.errors import RunError, UserError
from gpt3_jax.ngrams import corpus as corpus_module
from gpt3_jax.ngrams import finder, look, matches, wanted, words
from gpt3_jax.ngrams.corpus import Corpus
from gpt3_jax.ngrams.finder import Finder, Part
from gpt3_jax.ngrams.look import HITS, Looked
from gpt3_jax.ngrams.matches import Matcher, Matches
from gpt3_jax.ngrams.words import AS_WRITTEN, PAPER, Rule, normalised

DELETED = Rule("deleted")


@pytest.mark.parametrize(
    ("text", "separated", "deleted"),
    [
        ("Don't  STOP\tme.\n", "don t stop me", "dont stop me"),
        ("r e!c.i p = recip", "r e c i p recip", "r eci p recip"),
        ("a — b…c «d» 5$", "a b c d 5", "a bc d 5"),
        ("ÉCOLE\u00a0Straße\u2003ΣΑΣ", "école straße σασ", "école straße σασ"),
        ("你好，世界", "你好 世界", "你好世界"),
        ("\ufeffx\x00y", "\ufeffx\x00y", "\ufeffx\x00y"),
        ("𐐀 \U0002f800 😀", "𐐨 \U0002f800", "𐐨 \U0002f800"),
        ("…--- !!!", "", ""),
        ("", "", ""),
        ("a\ud800b", "a\ud800b", "a\ud800b"),  # half a character, as JSON may hold it
    ],
)
def test_words_as_the_paper_compares_them(text: str, separated: str, deleted: str) -> None:
    assert normalised(text) == separated
    assert normalised(text, DELETED) == deleted
    assert normalised(text, AS_WRITTEN) == " ".join(text.split())


@pytest.mark.parametrize("rule", [PAPER, DELETED, AS_WRITTEN])
def test_each_word_is_where_it_says_and_hashes_alike_everywhere(rule: Rule) -> None:
    text = "It's a «test», a Test — of It's É 你好 😀 a"
    found = words.words(text, rule)
    hashes: dict[str, int] = {}
    for number in range(len(found)):
        word = found.gram(number, 1)
        assert normalised(text[found.offsets[number] :], rule).startswith(word)
        assert hashes.setdefault(word, int(found.hashes[number])) == found.hashes[number]
    assert len(set(hashes.values())) == len(hashes)
    # A text of ASCII alone takes another way.
    assert words.words("A test", rule).hashes.tolist() == words.words("é A test", rule).hashes[1:].tolist()


def documents(rng: random.Random, pieces: list[str], count: int) -> list[str]:
    spaces = [" ", "  ", "\n", "", "\u2003", "\t"]
    return ["".join(rng.choice(pieces) + rng.choice(spaces) for _ in range(rng.randrange(60))) for _ in range(count)]


def in_parts(rng: random.Random, texts: list[str]) -> list[Part]:
    parts = []
    for number, text in enumerate(texts):
        cuts = [0, *sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(4))), len(text)]
        parts += [Part(number, text[a:b], b == len(text)) for a, b in itertools.pairwise(cuts) if a < b]
        if parts and parts[-1].document == number and not parts[-1].last:
            parts.append(Part(number, ""))
    return parts


def slow_grams(texts: list[str], n: int, rule: Rule) -> set[str]:
    cut = [normalised(text, rule).split() for text in texts]
    return {" ".join(each[i : i + n]) for each in cut for i in range(len(each) - n + 1)}


def slow_places(looked_for: set[str], texts: list[str], n: int, rule: Rule) -> list[tuple[str, int, int]]:
    found = []
    for document, text in enumerate(texts):
        cut, offsets = normalised(text, rule).split(), words.words(text, rule).offsets
        for i in range(len(cut) - n + 1):
            if (gram := " ".join(cut[i : i + n])) in looked_for:
                found.append((gram, document, int(offsets[i])))
    return sorted(found)


def check_places(seed: int) -> None:
    """Finds what a slow search finds, in one document and not across two, each once, at its place."""
    rng = random.Random(seed)
    finder.CHUNK = rng.choice([5, 17, 64, 1000])
    pieces = ["a", "b", "c", "A", "b,", "-", "é", "É", "…"]
    corpus, texts = documents(rng, pieces, rng.randrange(1, 12)), documents(rng, pieces, 4)
    rule, ns = rng.choice([PAPER, DELETED, AS_WRITTEN]), (1, 2, 3, 5)
    lists = [wanted.wanted(texts, n, rule) for n in ns]
    search = Finder(rule, lists)
    found: dict[int, list[tuple[str, int, int]]] = {n: [] for n in ns}
    for each in search.find(in_parts(rng, corpus)):
        for gram, document, offset in zip(each.gram, each.document, each.offset, strict=True):
            base = 0
            for n, of in zip(ns, lists, strict=True):
                if base <= gram < base + len(of):
                    found[n].append((of.gram(int(gram) - base), int(document), int(offset)))
                base += len(of)
    for n in ns:
        assert sorted(found[n]) == slow_places(slow_grams(texts, n, rule), corpus, n, rule), (seed, n)
    assert search.words == sum(len(words.words(text, rule)) for text in corpus)


@pytest.fixture(autouse=True)
def as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests set is set back."""
    for module, name in ((finder, "CHUNK"), (matches, "_PAIRS"), (words, "_mixed")):
        monkeypatch.setattr(module, name, getattr(module, name))


def test_what_is_found_is_what_a_slow_search_finds() -> None:
    for seed in range(80):
        check_places(seed)


def test_a_hash_is_not_trusted() -> None:
    """With hashes of two bits, almost every word has that of another, and grams of the texts collide among each
    other."""
    words._mixed = lambda hashes: (hashes * np.uint64(0x9E3779B97F4A7C15)) & np.uint64(3 << 62)
    for seed in range(30):
        check_places(seed)


def test_a_word_of_a_million_characters_and_a_document_without_words() -> None:
    finder.CHUNK = 1000
    long = "x" * 1_000_000
    texts = [f"one {long} two three", "." * 100_000, "one " + "-" * 5000 + " two three"]
    of = wanted.wanted([f"one {long} two", "one two three"], 3)
    found = list(Finder(PAPER, [of]).find(Part(n, text) for n, text in enumerate(texts)))
    assert [int(each) for one in found for each in one.document] == [0, 2]


def slow_longest(text: list[str], corpus: list[list[str]]) -> tuple[int, int]:
    """Words of the longest match, and how often that of them stands in the corpus that does so most often."""
    best, times = 0, Counter[int]()
    for other in corpus:
        for a in range(len(other)):
            for b in range(len(text)):
                if a and b and other[a - 1] == text[b - 1]:
                    continue  # the match begins earlier
                length = 0
                while a + length < len(other) and b + length < len(text) and other[a + length] == text[b + length]:
                    length += 1
                if length > best:
                    best, times = length, Counter()
                times[b] += length == best
    return best, max(times.values(), default=0)


class Pieces:
    """A reader of what a test made up."""

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def parts(self, _: Any) -> Any:
        return iter(self._parts)


def test_the_longest_match_and_the_nearest_documents_are_those_of_a_slow_search() -> None:
    rng = random.Random(1)
    for _ in range(120):
        finder.CHUNK, matches._PAIRS = rng.choice([5, 17, 64, 1000]), rng.choice([1, 3, 50, 100_000])
        letters = "aabbc"[: rng.choice([1, 3, 5])]
        corpus = [" ".join(rng.choices(letters, k=rng.randrange(60))) for _ in range(rng.randrange(1, 8))]
        texts = [" ".join(rng.choices(letters, k=rng.randrange(25))) for _ in range(4)]
        n = rng.choice([2, 3, 4])
        matcher, found = Matcher(wanted.wanted(texts, n), 2), Matches(2)
        border = rng.randrange(len(corpus) + 1)  # of two pieces
        for file, numbers in enumerate((range(border), range(border, len(corpus)))):
            reader: Any = Pieces([Part(number, corpus[number]) for number in numbers])
            found.add(file, matcher.collect(reader, reader))
        for number, text in enumerate(texts):
            cut = text.split()
            best, times = slow_longest(cut, [each.split() for each in corpus])
            rows = found.longest(number)
            assert (len(rows) > 0) == (best >= n)
            if len(rows):
                assert (rows[0, 1], rows[:, 5].sum()) == (best, times)
            for _, length, word, document, offset, *_ in rows.tolist():
                assert corpus[document][offset:].split()[:length] == cut[word : word + length]
            own = slow_grams([text], n, PAPER)
            shared = [(-len(own & slow_grams([each], n, PAPER)), document) for document, each in enumerate(corpus)]
            assert [(-row[1], row[2]) for row in found.nearest(number).tolist()] == sorted(
                pair for pair in shared if pair[0]
            )[:2]


TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "A wholly different text, with 12 words in it — or so it seems.",
    "the Quick BROWN fox; jumps over: again and again",
    "Über Größe: 你好 and the quick brown fox, too",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[str], Options, str | None]]:
    """The same documents in each format: paths, options, tokenizer."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS)
    (folder / "a.jsonl").write_text(lines)
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "a.txt").write_text("<|>".join(TEXTS))
    for number, text in enumerate(TEXTS):
        (folder / f"part{number}.txt").write_text(text)
    tokenize([str(folder / "a.jsonl")], folder / "shards", "bytes", shard_tokens=7)
    from gpt3_jax.data.shards import ShardSource

    source = ShardSource(folder / "shards")
    np.save(folder / "ids.npy", source.read(0, source.n_tokens))
    made: dict[str, tuple[list[str], Options, str | None]] = {
        "jsonl": ([str(folder / "a.jsonl")], Options(), None),
        "gzip": ([str(folder / "a.jsonl.gz")], Options(), None),
        "text": ([str(folder / "a.txt")], Options(split_on="<|>"), None),
        "files": ([str(folder / "part*.txt")], Options(), None),
        "shards": ([str(folder / "shards")], Options(), None),
        "ids": ([str(folder / "ids.npy")], Options(), "bytes"),
        "mixed": ([str(folder / "shards"), str(folder / "part2.txt")], Options(), None),
    }
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"text": TEXTS}), folder / "a.parquet")
        made["parquet"] = ([str(folder / "a.parquet")], Options(), None)
    except ImportError:
        pass
    return made


def test_every_format_holds_the_same(made: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in pieces of a few tokens, and read by two processes."""
    of = wanted.wanted(["quick brown fox jumps", "12 words", "größe 你好 and the", "dog a wholly"], 3)
    for name, (paths, options, tokenizer) in made.items():
        for piece_tokens in (1 << 20, 60):
            monkeypatch.setattr(corpus_module, "PIECE_TOKENS", piece_tokens)
            monkeypatch.setattr(corpus_module, "_READ_TOKENS", max(11, piece_tokens // 7))
            looked = look.look(Corpus(paths, options, tokenizer), [of])
            counts = dict(zip(map(of.gram, range(len(of))), looked.tally.documents.tolist(), strict=True))
            extra = name == "mixed"
            assert counts == {
                "quick brown fox": 3 + extra, "brown fox jumps": 2 + extra, "größe 你好 and": 1, "你好 and the": 1,
                "dog a wholly": 0,
            }, name  # fmt: skip
            assert looked.took.size.documents == len(TEXTS) + extra
            assert looked.took.size.bytes == sum(len(text.encode()) for text in TEXTS) + extra * len(TEXTS[2].encode())
    paths, options, tokenizer = made["mixed"]
    monkeypatch.undo()
    alone, together = (look.look(Corpus(paths, options, tokenizer), [of], workers) for workers in (1, 2))
    for name, array in alone.tally.arrays().items():
        assert array.tolist() == together.tally.arrays()[name].tolist()


def test_places_are_named(made: dict[str, Any]) -> None:
    names = {
        "jsonl": "a.jsonl, line 3", "text": "a.txt, text 3", "files": "part2.txt", "shards": "shards, document 2",
        "ids": "ids.npy, document 2", "parquet": "a.parquet, row 2",
    }  # fmt: skip
    of = wanted.wanted(["over again and again"], 4)
    for name, expected in names.items():
        if name in made:
            corpus = Corpus(*made[name])
            [[_, file, document, offset, times]] = look.look(corpus, [of]).tally.places.tolist()
            assert (corpus.name(file, document).rpartition("/")[2], offset, times) == (expected, 27, 1)


class Stop(Exception):
    pass


def test_an_interrupted_search_goes_on_and_a_finished_one_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(3)
    texts = [" ".join(rng.choices("abcdefg", k=40)) for _ in range(300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setattr(corpus_module, "BLOCK_BYTES", 1000)
    of = wanted.wanted(texts[:20], 3)
    whole = look.look(Corpus([str(tmp_path / "a.jsonl")]), [of])
    folder = tmp_path / "out"
    folder.mkdir()
    seen = 0

    def stop(_: Any) -> None:
        nonlocal seen
        seen += 1
        if seen % 9 == 0:
            raise Stop

    found: Looked | None = None
    stopped = 0
    for _ in range(20):
        try:
            found = look.look(Corpus([str(tmp_path / "a.jsonl")]), [of], 1, folder, stop)
            break
        except Stop:
            stopped += 1
            assert [path.name for path in folder.iterdir()] == [HITS]
    assert stopped >= 2
    assert found is not None
    assert found.took.size == whole.took.size
    for name, array in whole.tally.arrays().items():
        assert array.tolist() == found.tally.arrays()[name].tolist()
    before = seen
    again = look.look(Corpus([str(tmp_path / "a.jsonl")]), [of], 1, folder, stop)
    assert (again.tally.documents.tolist(), seen) == (whole.tally.documents.tolist(), before)
    # Another text or another question is another search.
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": texts[0]}) + "\n")
    assert look.look(Corpus([str(tmp_path / "a.jsonl")]), [of], 1, folder).took.size.documents == 1
    other = wanted.wanted(texts[:20], 4)
    assert len(look.look(Corpus([str(tmp_path / "a.jsonl")]), [other], 1, folder).tally.documents) == len(other)
    (folder / HITS).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(RunError, match=f"{HITS} is damaged .* delete it"):
        look.look(Corpus([str(tmp_path / "a.jsonl")]), [of], 1, folder)


def test_places_of_a_frequent_gram_are_bounded_and_its_counts_are_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "so it goes, and so it goes"}\n' * 100)
    looked = look.look(Corpus([str(tmp_path / "a.jsonl")]), [wanted.wanted(["so it goes"], 3)])
    assert looked.tally.documents.tolist() == [100]
    assert looked.tally.occurrences.tolist() == [200]
    assert looked.tally.places.tolist() == [[0, 0, line, 0, 2] for line in range(1, 17)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: [], "there is no text to look through"),
        (lambda f: [str(f / "no.txt")], "no file matches"),
        (lambda f: [str(f / "a.dat")], "unknown extension"),
        (lambda f: [str(f / "a.txt"), str(f / "a.txt")], "given twice"),
        (lambda f: [str(f / "sh"), f"{f}/./sh"], "given twice"),
        (lambda f: [str(f)], "has no index.json"),
        (lambda f: [str(f / "ids.npy")], "does not record its tokenizer; name it with --tokenizer"),
        (lambda f: [str(f / "latin.txt")], "is not UTF-8 at byte 3"),
        (lambda f: [str(f / "bad.jsonl")], "line 2: not JSON"),
        (lambda f: [str(f / "key.jsonl")], "line 1: no key 'text'"),
        (lambda f: [str(f / "cut.jsonl.gz")], "ends in the middle of its gzip stream"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, make: Any, message: str) -> None:
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "a.dat").write_text("a text")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "key.jsonl").write_text('{"content": "a"}\n')
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-20])
    np.save(tmp_path / "ids.npy", np.arange(5, dtype=np.uint16))
    tokenize([str(tmp_path / "a.txt")], tmp_path / "sh", "bytes")
    with pytest.raises((UserError, RunError), match=message) as raised:
        look.look(Corpus(make(tmp_path)), [wanted.wanted(["a b"], 2)])
    assert "\n" not in str(raised.value)


def test_documents_that_cannot_be_read_are_left_out_and_counted_if_asked(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a b"}\n{"no": 1}\nnot JSON\n{"text": "a b"}\n')
    looked = look.look(Corpus([str(tmp_path / "a.jsonl")], Options(on_error="skip")), [wanted.wanted(["a b"], 2)])
    assert (looked.took.size.documents, looked.took.size.left_out, looked.tally.documents.tolist()) == (2, 2, [2])


def test_a_tokenizer_that_is_not_the_shards_is_to_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    tokenize([str(tmp_path / "a.txt")], tmp_path / "shards", "bytes")
    index = tmp_path / "shards" / "index.json"
    text = index.read_text().replace(ByteTokenizer().fingerprint, "0" * 64)
    index.write_text(text.replace('"name": "bytes"', '"name": "other"'))
    with pytest.raises(UserError, match="was tokenized with 'other', not with 'bytes'; leave --tokenizer out"):
        Corpus([str(tmp_path / "shards")], tokenizer="bytes")
    index.write_text(text)
    with pytest.raises(UserError, match="is today; restore it"):
        Corpus([str(tmp_path / "shards")], tokenizer="bytes")
