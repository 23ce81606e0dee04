"""Winograd schemas and Winogrande (section 3.4, Figures G.13 and G.14): partial evaluation of a sentence with each
candidate in the pronoun's place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from gpt3_jax.errors import UserError
from gpt3_jax.evals.scoring import PartialEvaluation
from gpt3_jax.evals.tasks import published, rows
from gpt3_jax.evals.tasks.item import Item
from gpt3_jax.evals.tasks.labels import label
from gpt3_jax.evals.tasks.open_settings import DELIMITER
from gpt3_jax.evals.tasks.published import DataSet, Found, Options, Split
from gpt3_jax.evals.tasks.task import Open
from gpt3_jax.evals.tasks.wording import lower_first, upper_first

_POSSESSIVES = ("my", "your", "his", "her", "its", "our", "their")
_AFTER_AN_OBJECT = re.compile(
    r"$|[.,;:?!)]|(?:the|a|an|to|in|on|at|with|for|from|of|by|and|or|but|because|when|while|that|as|if|so)(?![\w-])",
    re.IGNORECASE,
)
"""How the rest of a sentence begins where "her" before it is no possessive: "to disturb her, undressing"."""
_DETERMINERS = (*_POSSESSIVES, "the", "a", "an", "this", "that", "these", "those", "some", "many", "each", "every")


def _winograd(found: Found, options: Options) -> Iterator[Item | None]:
    made = (
        _of_xml(found.files[0], options)
        if rows.plain_name(found.files[0]).endswith(".xml")
        else _of_rows(found, options)
    )
    for number, item in enumerate(made):
        if number == int(options["schemas"]):
            return
        yield item


def _of_xml(path: str, options: Options) -> Iterator[Item]:
    """The authors' collection."""
    root = rows.xml_root(path)
    schemas = root.findall("schema")
    if not schemas:
        raise UserError(f"{path} has no <schema>; expected the collection of Winograd schemas")
    for number, schema in enumerate(schemas, start=1):
        where = f"{path}, schema {number}"
        before, pronoun, after = (_inside(schema, f"text/{tag}", where) for tag in ("txt1", "pron", "txt2"))
        candidates = [" ".join((each.text or "").split()) for each in schema.findall("answers/answer")]
        letter = _inside(schema, "correctAnswer", where).strip(". ")
        right = "ABCDE".find(letter.upper()) if len(letter) == 1 else -1
        if len(candidates) < 2 or not all(candidates):
            raise UserError(f"{where}: <answers> has {len(candidates)} texts; expected two or more")
        if not 0 <= right < len(candidates):
            last = "ABCDE"[len(candidates) - 1]
            raise UserError(f"{where}: <correctAnswer> is {letter!r}; expected a letter, A to {last}")
        yield _schema(str(number - 1), before, pronoun, after, candidates, right, options)


def _inside(schema: Element, tag: str, where: str) -> str:
    """The text of an element, white space as single spaces."""
    found = schema.find(tag)
    text = " ".join("".join(found.itertext()).split()) if found is not None else ""
    if not text and tag != "text/txt1":
        raise UserError(f"{where}: <{tag.rpartition('/')[2]}> is {'missing' if found is None else 'empty'}")
    return text


def _of_rows(found: Found, options: Options) -> Iterator[Item | None]:
    """The Hub's rows (text, pronoun_loc, options), or those of other groups' sets with the candidates put in
    (context_options, continuation, gold)."""
    for number, (where, row) in enumerate(found.rows()):
        if "context_options" in row:
            contexts = rows.texts(row["context_options"], "context_options", where, (2, 5))
            gold = rows.number(row, "gold", where, 0, len(contexts) - 1)
            rest = rows.text(row, "continuation", where).strip()
            yield Item(str(number), contexts[gold], _joined(rest), right=(gold,), contexts=contexts)
            continue
        text, pronoun = rows.text(row, "text", where), rows.text(row, "pronoun", where)
        at = rows.number(row, "pronoun_loc", where, 0, len(text))
        if text[at : at + len(pronoun)] != pronoun:
            raise UserError(f"{where}: the text has no {pronoun!r} at its 'pronoun_loc', {at}")
        candidates = list(rows.texts(rows.required(row, "options", where), "options", where, (2, 5)))
        right = label(row, "label", where, {n: n for n in range(len(candidates))})
        after = " ".join(text[at + len(pronoun) :].split())
        yield (
            None
            if right is None
            else _schema(str(number), " ".join(text[:at].split()), pronoun, after, candidates, right, options)
        )


def _schema(
    id: str, before: str, pronoun: str, after: str, candidates: list[str], right: int, options: Options
) -> Item:
    possessive = pronoun.lower() in _POSSESSIVES and not (pronoun.lower() == "her" and _AFTER_AN_OBJECT.match(after))
    own = [_candidate(each, pronoun, possessive, bool(before), str(options["candidates"])) for each in candidates]
    contexts = tuple(f"{before} {each}".strip() for each in own)
    return Item(id, contexts[right], _joined(after), right=(right,), contexts=contexts)


def _candidate(text: str, pronoun: str, possessive: bool, inside: bool, how: str) -> str:
    """A candidate in the pronoun's place: in the pronoun's case, and possessive if it is."""
    first, space, rest = text.partition(" ")
    if how == "figure" and space and first.lower() in _POSSESSIVES:
        first = "the"
    if first.lower() in _DETERMINERS and space:
        first = lower_first(first)
    text = first + space + rest
    if possessive and not re.search(r"['\u2019]s?$", text):
        plural = pronoun.lower() == "their" and text.endswith("s")
        text += "'" if plural else "'s"
    begins = pronoun[:1].isupper() and pronoun != "I"
    return upper_first(text) if begins or not inside else text


def _joined(rest: str) -> str:
    """The rest of a sentence as it follows a word: after a space, unless it begins with punctuation."""
    return rest if re.match(r"[.,;:?!)]|['\u2019]s\b", rest) else f" {rest}"


def _winogrande(found: Found, _: Options) -> Iterator[Item | None]:
    for number, (where, row) in enumerate(found.rows()):
        sentence = rows.text(row, "sentence", where)
        names = [rows.text(row, field, where).strip() for field in ("option1", "option2")]
        before, blank, after = sentence.partition("_")
        if not blank or "_" in after or not after.strip():
            raise UserError(f"{where}: 'sentence' is {sentence[:60]!r}; expected one _ and words after it")
        right = label(row, "answer", where, {"1": 0, "2": 1, 1: 0, 2: 1})
        contexts = tuple(before + name for name in names)
        id = str(row.get("qID", number))
        yield None if right is None else Item(id, contexts[right], after, right=(right,), contexts=contexts)


def _sizes(pattern: str) -> tuple[str, ...]:
    return tuple(pattern.replace("SIZE", size) for size in ("xl", "l", "m", "s", "xs"))


TASKS = (
    published.task(
        "winograd",
        DataSet(
            test=Split("test", ("WSCollection.xml", "winograd_wsc.jsonl", "wsc273.jsonl")),
            train=None,
            hub=(("winograd_wsc", "wsc273"),),
        ),
        _winograd,
        row="Winograd",
        scoring=PartialEvaluation(),
        metrics=("accuracy",),
        shots=7,
        delimiter="\n",
        separator="",
        options={"schemas": 273, "candidates": "figure"},
        open=(
            DELIMITER,
            Open(
                "schemas", "How many schemas are evaluated; the default is the paper's 273, of 285 in the collection."
            ),
            Open(
                "candidates",
                "Figure G.13 has the sweater where the collection has her sweater; the default figure writes the for "
                "any such word, data leaves the collection's candidates.",
                ("figure", "data"),
            ),
        ),
        about="which noun a pronoun stands for; 273 schemas",
    ),
    published.task(
        "winogrande",
        DataSet(
            test=Split("validation", ("winogrande*/**/dev.jsonl",)),
            train=Split("train", _sizes("winogrande*/**/train_SIZE.jsonl")),
            hub=(("winogrande", "winogrande_xl"),),
        ),
        _winogrande,
        row="Winogrande",
        scoring=PartialEvaluation(),
        metrics=("accuracy",),
        shots=50,
        delimiter="\n",
        separator="",
        open=(DELIMITER,),
        about="which of two names fills a blank",
    ),
)
