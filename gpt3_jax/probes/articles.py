"""News articles and the prompts that ask for more of them (GPT-3 section 3.9.4, Figure 3.14)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gpt3_jax.errors import UserError
from gpt3_jax.probes.text_files import json_lines, text_of

STOP = "\nTitle:"
"""Where an article ends at the latest: the next one begins. The paper does not say how its articles were ended."""


@dataclasses.dataclass(frozen=True)
class Article:
    """A human's article."""

    title: str
    subtitle: str
    text: str

    @property
    def words(self) -> int:
        """Separated by white space."""
        return len(self.text.split())

    @property
    def heading(self) -> str:
        """What stands in front of an article."""
        return f"Title: {self.title}\nSubtitle: {self.subtitle}\nArticle:"


def read_articles(path: str) -> list[Article]:
    """Articles of a file of JSON lines with the keys ``title``, ``subtitle`` and ``article``.

    Raises:
        UserError: the file is not there, a line is not JSON or lacks a key, or a title stands there twice.
        RunError: the file cannot be read.
    """
    found: dict[str, Article] = {}
    for where, row in json_lines(path):
        title, subtitle, text = (text_of(row, key, where) for key in ("title", "subtitle", "article"))
        for key, line in (("title", title), ("subtitle", subtitle)):
            if "\n" in line:
                raise UserError(f"{where}: the {key} has several lines; expected one")
        if STOP in text:
            raise UserError(f"{where}: the article has a line that begins with 'Title:'; that is where articles end")
        if title in found:
            raise UserError(f"{where}: the title {title[:60]!r} stands there before; leave one article out")
        found[title] = Article(title, subtitle, text)
    if not found:
        raise UserError(f"{path} has no articles; expected JSON lines with title, subtitle and article")
    return list(found.values())


def prompt(article: Article, context: Sequence[Article]) -> str:
    """The prompt for an article after the articles of a context. What stands between two articles is not known; the
    paper's figure shows line breaks."""
    before = "".join(f"{each.heading} {each.text}\n\n" for each in context)
    return before + article.heading


def nearest(texts: Sequence[str], words: int) -> int:
    """Which text has the number of words nearest to `words`; of several the first."""
    return min(range(len(texts)), key=lambda i: (abs(len(texts[i].split()) - words), i))
