"""Translation (section 3.3, Figures G.36 to G.41): WMT'14 French, WMT'16 German and Romanian, from and to English.

Two files aligned by line are read, under the names that people have: ``newstest2014.fr`` and ``.en`` (also ``.fra`` and
``.eng``), WMT's ``newstest2014-fren-src.fr.sgm`` and ``-ref.en.sgm``, sacrebleu's ``wmt14.fr-en.src`` and ``.ref``; or
the Hub's ``wmt14`` and ``wmt16``, whose rows hold both languages.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Iterator

from gpt3_jax.errors import UserError
from gpt3_jax.evals import bleu
from gpt3_jax.evals.scoring import Generated
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.open_settings import DELIMITER, GENERATED, SEPARATOR
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open, Task

_LANGUAGES = {
    "en": ("English", "eng"),
    "fr": ("French", "fra"),
    "de": ("German", "deu"),
    "ro": ("Romanian", "ron"),
}
_CORPORA = ("europarl-v7", "europarl-v8", "commoncrawl")
"""WMT's training texts, the preferred first; each is a pair of files such as europarl-v7.fr-en.fr and .en."""
_ZERO_SHOT = Open(
    "zero_shot",
    "Whether question and answer of the zero-shot prompt stand in one line is not said; the default is one line, as "
    "the caption of Figure G.36 has it.",
    ("one line", "two lines"),
)
_TRAIN_LINES = Open(
    "train_lines",
    "Which training texts the demonstrations are from is not said, the examples shown look like WMT's; the default "
    "draws from the first 100,000 lines of the one that is found, 0 from all of them.",
    least=0,
)


def _read(source: str, target: str, found: Found, options: Options) -> Iterator[Item | None]:
    """Lines that are empty in one of the languages are left out and counted, as training texts have some."""
    bleu.require()  # before the model runs
    most = int(options["train_lines"]) or None if found.split == "train" else None
    for number, (given, wanted) in enumerate(itertools.islice(_pairs(source, target, found, most), most)):
        if not given or not wanted:
            yield None
            continue
        asked = f"Q: What is the {_LANGUAGES[target][0]} translation of {given}"
        between = " " if options["zero_shot"] == "one line" else "\n"
        yield Item(str(number), f"{given} =", wanted, zero_shot=f"{asked}{between}A:")


def _pairs(source: str, target: str, found: Found, most: int | None) -> Iterator[tuple[str, str]]:
    """Sentences of the two languages, without white space around; `most` lines of text files."""
    if found.hub:
        for where, row in found.rows():
            at, both = rows.object_in(row, "translation", where)
            yield rows.text(both, source, at, empty=True).strip(), rows.text(both, target, at, empty=True).strip()
        return
    (path,) = found.files
    language = _foreign(source, target)
    beside = published.companion(path, _english(path, language), "English lines")
    foreign, english = _sentences(path, most), _sentences(beside, most)
    if len(english) != len(foreign):
        raise UserError(f"{path} has {len(foreign):,} lines, and {beside} has {len(english):,}; expected as many")
    yield from zip(*((foreign, english) if source == language else (english, foreign)), strict=True)


def _foreign(source: str, target: str) -> str:
    """The language that is not English: a pair of files is found by the name of its part."""
    return target if source == "en" else source


def _english(path: str, foreign: str) -> str:
    """The name of the file in English that belongs to one in another language."""
    name = os.path.basename(path)
    name = name[: len(rows.plain_name(name))]
    for pattern, change in (
        (rf"-src\.{foreign}\.sgm$", "-ref.en.sgm"),
        (rf"-ref\.{foreign}\.sgm$", "-src.en.sgm"),
        (r"\.src$", ".ref"),
        (r"\.ref$", ".src"),
        (rf"\.{foreign}$", ".en"),
        (rf"\.{_LANGUAGES[foreign][1]}$", ".eng"),
    ):
        if re.search(pattern, name, re.IGNORECASE):
            return re.sub(pattern, change, name, flags=re.IGNORECASE)
    endings = f".{foreign}, .{_LANGUAGES[foreign][1]}, .src, .ref, -src.{foreign}.sgm or -ref.{foreign}.sgm"
    raise UserError(
        f"{path}: the name does not say that it is {_LANGUAGES[foreign][0]}; expected it to end in {endings}"
    )


def _sentences(path: str, most: int | None) -> list[str]:
    if not rows.plain_name(path).endswith(".sgm"):
        return [line.strip() for _, line in rows.lines(path, most)]
    # As sacrebleu reads them: characters that SGML writes as entities stay as they are.
    found = re.findall(r"<seg\b[^>]*>(.*?)</seg>", rows.read_text(path), re.IGNORECASE | re.DOTALL)
    if not found:
        raise UserError(f"{path} has no <seg>; expected a test set of WMT, a sentence in each")
    return [" ".join(sentence.split()) for sentence in found]


def _files(stem: str, source: str, target: str) -> tuple[str, ...]:
    """Names of the file in the other language than English, of a test set such as newstest2014."""
    foreign = _foreign(source, target)
    pair = f"{foreign}en" if stem == "newstest2014" else source + target  # WMT'14 has one set for both directions
    side = "src" if foreign == source else "ref"
    return (f"{stem}-{pair}-{side}.{foreign}.sgm", f"{stem}.{foreign}", f"{stem}.{_LANGUAGES[foreign][1]}")


def _data_set(year: int, source: str, target: str) -> DataSet:
    foreign, wmt = _foreign(source, target), f"wmt{year}"
    development = "newsdev2016" if foreign == "ro" else "newstest2013"
    test = (
        *_files(f"newstest20{year}", source, target),
        f"{wmt}.{source}-{target}.{'src' if foreign == source else 'ref'}",
        f"{wmt}/{source}-{target}.{foreign}",
    )
    train = (
        *(f"{corpus}.{foreign}-en.{foreign}" for corpus in _CORPORA),
        f"giga-fren.release2.fixed.{foreign}",
        *_files(development, source, target),
    )
    return DataSet(Split("test", test), Split("train", train), ((wmt, f"{foreign}-en"),))


def _task(year: int, source: str, target: str) -> Task:
    names = (source.capitalize(), target.capitalize())
    return published.task(
        f"wmt{year}_{source}_{target}",
        _data_set(year, source, target),
        functools.partial(_read, source, target),
        row=f"{names[0]}->{names[1]} {year}",
        scoring=Generated(max_tokens=256),
        metrics=("BLEU", "BLEU 13a"),
        shots=64,
        delimiter="\n",
        options={"zero_shot": "one line", "train_lines": 100_000},
        open=(*GENERATED, SEPARATOR, DELIMITER, _ZERO_SHOT, _TRAIN_LINES),
        about=f"WMT'{year}, {_LANGUAGES[source][0]} to {_LANGUAGES[target][0]}",
    )


TASKS = tuple(
    _task(year, *direction)
    for year, foreign in ((14, "fr"), (16, "de"), (16, "ro"))
    for direction in (("en", foreign), (foreign, "en"))
)
