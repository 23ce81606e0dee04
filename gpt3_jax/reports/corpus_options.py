"""Options for a text to look through, and the bar that shows how far it is read."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gpt3_jax.data.documents import Options
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path

if TYPE_CHECKING:
    from gpt3_jax.ngrams.corpus import Corpus
    from gpt3_jax.ngrams.scan import Progress as Scanned


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options by which `corpus_of` finds documents."""
    parser.add_argument(
        "corpus",
        type=local_path,
        nargs="+",
        metavar="DATA",
        help="training text: folders of token shards, files or globs of text, JSONL or Parquet (also .gz, .zst), files "
        "of token ids (.bin, .npy, Megatron's)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that read the training text (default: one per core, here %(default)s)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="tokenizer of token ids in DATA that do not record theirs, as token shards do; of text, the tokenizer by "
        "which memorisation counts tokens",
    )
    parser.add_argument("--text-key", default="text", metavar="KEY", help="JSON key or column (default: %(default)s)")
    parser.add_argument(
        "--split-on", default="", metavar="TEXT", help="separator of documents in text files (default: none)"
    )
    parser.add_argument(
        "--format", choices=("text", "jsonl", "parquet"), help="format of files (default: by extension)"
    )
    parser.add_argument(
        "--errors",
        choices=("strict", "replace"),
        default="strict",
        help="bytes that are not UTF-8: stop, or replace them by U+FFFD (default: %(default)s)",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="a document that cannot be read: stop, or leave it out and count it (default: %(default)s)",
    )


def corpus_of(arguments: argparse.Namespace) -> Corpus:
    """Opens what the options name.

    Raises:
        UserError: nothing is there, or it cannot be read as configured.
        RunError: a file is damaged.
    """
    from gpt3_jax.ngrams.corpus import Corpus

    if arguments.workers < 1:
        raise UserError(f"--workers is {arguments.workers}; expected at least 1")
    options = Options(
        text_key=arguments.text_key,
        split_on=arguments.split_on,
        kind=arguments.format,
        errors=arguments.errors,
        on_error=arguments.on_error,
    )
    return Corpus(arguments.corpus, options, arguments.tokenizer)


@contextmanager
def progress_bar() -> Iterator[Callable[[Scanned], None]]:
    """A bar on stderr, if that is a terminal."""
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("read", total=None, rate="")

        def update(scanned: Scanned) -> None:
            rate = f"{scanned.size.bytes / 1e6 / max(scanned.seconds, 1e-9):,.0f} MB/s of text"
            bar.update(task, completed=scanned.done, total=scanned.whole, rate=rate)

        yield update
