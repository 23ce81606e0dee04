"""`gpt3-jax data`: converts text to token shards and inspects them."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from gpt3_jax.config import SourceConfig
from gpt3_jax.data import tokenize as tokenizing
from gpt3_jax.data.documents import Options
from gpt3_jax.data.shards import DEFAULT_SHARD_TOKENS, ShardSource
from gpt3_jax.data.sources import TokenSource, open_source
from gpt3_jax.data.tokenizer import Tokenizer, load_tokenizer
from gpt3_jax.data.writer import LeftOut
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path


def main(argv: list[str]) -> int:
    """Runs `gpt3-jax data ARGV` and returns the exit code. UserError and RunError reach the caller."""
    arguments = _parser().parse_args(argv)
    return int(arguments.run(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpt3-jax data", description="Text to token shards, and a look at them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_tokenize(commands)
    _add_inspect(commands)
    _add_languages(commands)
    return parser


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty; leave it out to take each file as one document")
    return text


def _add_tokenize(commands: Any) -> None:
    parser = commands.add_parser(
        "tokenize",
        help="text, JSONL or Parquet to token shards",
        description=(
            "Tokenizes text (.txt .text .md), JSONL (.jsonl .ndjson), either also as .gz or .zst, and Parquet "
            "(.parquet) into a folder of token shards, with end-of-text after each document. Empty documents are "
            "left out and counted. After any interruption, even a kill, the same command continues where it stopped; "
            "the result is the same to the byte, for any number of workers. Until it is complete it is in DIR.partial."
        ),
    )
    parser.add_argument(
        "files", type=local_path, nargs="+", metavar="FILE_OR_GLOB", help="inputs, in this order; a glob is sorted"
    )
    parser.add_argument(
        "--out", type=local_path, required=True, metavar="DIR", help="folder for the shards; must not exist yet"
    )
    parser.add_argument(
        "--tokenizer",
        type=local_path,
        default="r50k_base",
        metavar="NAME",
        help="r50k_base (GPT-2's BPE), bytes (256 bytes and end-of-text), or the path of a tiktoken rank file or of a "
        "folder with tokenizer.json, or vocab.json and merges.txt (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that tokenize (default: one per core, here %(default)s)",
    )
    parser.add_argument(
        "--text-key",
        default="text",
        metavar="KEY",
        help="JSON key or Parquet column that holds the text (default: %(default)s)",
    )
    parser.add_argument(
        "--split-on",
        default=None,
        type=_not_empty,
        metavar="TEXT",
        help="separator of documents in text files, e.g. '<|endoftext|>' or $'\\n\\n' (default: none; a text "
        "file is one document)",
    )
    parser.add_argument(
        "--format",
        choices=("text", "jsonl", "parquet"),
        help="format of all inputs (default: by extension)",
    )
    parser.add_argument(
        "--errors",
        choices=("strict", "replace"),
        default="strict",
        help="for bytes that are not UTF-8: stop and name file and byte, or replace them by U+FFFD (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="for a document that cannot be read (null, no text under the key, not JSON, not UTF-8, too long): stop "
        "and name file and line, or skip it; the number of skipped documents by reason is printed and kept in the "
        "index (default: %(default)s)",
    )
    parser.add_argument(
        "--shard-tokens",
        type=int,
        default=DEFAULT_SHARD_TOKENS,
        metavar="N",
        help="tokens per shard file (default: %(default)s, 512 MiB of 16-bit ids)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON (default: one line of text)")
    parser.set_defaults(run=_tokenize)


def _add_inspect(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect",
        help="counts, tokenizer and first tokens of token files",
        description=(
            "Shows token shards (a folder), files of token ids (.bin or .npy of nanoGPT, llm.c, modded-nanogpt, NumPy) "
            "and Megatron .bin/.idx datasets. Always checks sizes and samples of the contents against the index, and "
            "samples of the ids against their type."
        ),
    )
    parser.add_argument(
        "paths", type=local_path, nargs="+", metavar="PATH", help="folder of shards, .bin, or Megatron prefix"
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every byte and compare it with the checksums in the index; formats without checksums: read every id "
        "and compare it with --tokenizer's vocabulary (default: check sizes and samples)",
    )
    parser.add_argument(
        "--show",
        type=int,
        default=32,
        metavar="N",
        help="first tokens to show, decoded; 0: none (default: %(default)s)",
    )
    parser.add_argument(
        "--tokenizer",
        type=local_path,
        metavar="NAME",
        help="decode with this (default: the tokenizer that the shards record; without one, only ids are shown)",
    )
    parser.add_argument(
        "--dtype",
        choices=("auto", "uint16", "uint32", "int32", "int64"),
        default="auto",
        help="type of the ids in a file that does not record it, such as nanoGPT's (default: %(default)s, determined "
        "from the ids)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list, one object per path (default: text)")
    parser.set_defaults(run=_inspect)


def _add_languages(commands: Any) -> None:
    parser = commands.add_parser(
        "languages",
        help="documents, words and characters of a corpus by language",
        description=(
            "Counts a corpus by language, as the paper publishes it of its own: languages_by_document_count.csv, "
            "languages_by_word_count.csv and languages_by_character_count.csv. CLD2 finds a document's language (extra "
            "languages); where it finds none reliably, the language is 'unknown'. Words are separated by white space. "
            "Inputs are text, JSONL and Parquet, as data tokenize reads them, and folders of token shards."
        ),
    )
    parser.add_argument(
        "paths", type=local_path, nargs="+", metavar="PATH", help="files, globs, or folders of token shards"
    )
    parser.add_argument(
        "--out", type=local_path, metavar="DIR", help="folder for the three files (default: print a table only)"
    )
    parser.add_argument(
        "--look-at",
        type=int,
        default=20_000,
        metavar="N",
        help="characters of a document that the detector sees, a third each from its beginning, middle and end; 0: all "
        "(default: %(default)s). All are counted",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that detect (default: one per core, here %(default)s)",
    )
    parser.add_argument(
        "--tokenizer",
        type=local_path,
        metavar="NAME",
        help="decodes token shards (default: the tokenizer that they record)",
    )
    like_tokenize: dict[str, dict[str, Any]] = {
        "--text-key": {"default": "text", "metavar": "KEY"},
        "--split-on": {"type": _not_empty, "metavar": "TEXT"},
        "--format": {"choices": ("text", "jsonl", "parquet")},
        "--errors": {"choices": ("strict", "replace"), "default": "strict"},
        "--on-error": {"choices": ("stop", "skip"), "default": "stop"},
    }
    for name, options in like_tokenize.items():
        parser.add_argument(name, help="as for data tokenize", **options)
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    parser.set_defaults(run=_languages)


def _languages(arguments: argparse.Namespace) -> int:
    from gpt3_jax.data import languages

    options = Options(
        text_key=arguments.text_key,
        split_on=arguments.split_on or "",
        kind=arguments.format,
        errors=arguments.errors,
        on_error=arguments.on_error,
    )
    from gpt3_jax.evals import written

    with written.alone_in(arguments.out), _bar("detecting", "{task.fields[documents]:,} documents") as bar:
        found = languages.count_languages(
            arguments.paths,
            options=options,
            look_at=arguments.look_at,
            tokenizer=arguments.tokenizer,
            workers=arguments.workers,
            on_progress=lambda progress: bar(
                completed=progress.bytes_read, total=progress.bytes_total, documents=progress.documents
            ),
        )
        wrote = languages.write_csvs(found, arguments.out) if arguments.out else []
    if found.left_out.counts:
        print(found.left_out, file=sys.stderr)
    print(json.dumps(found.as_data(), indent=1) if arguments.json else found.table())
    for path in wrote:
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _tokenize(arguments: argparse.Namespace) -> int:
    began = time.monotonic()
    options = Options(
        text_key=arguments.text_key,
        split_on=arguments.split_on or "",
        kind=arguments.format,
        errors=arguments.errors,
        on_error=arguments.on_error,
    )
    with _progress_bar() as on_progress:
        source = tokenizing.tokenize(
            arguments.files,
            arguments.out,
            arguments.tokenizer,
            options=options,
            workers=arguments.workers,
            shard_tokens=arguments.shard_tokens,
            on_progress=on_progress,
        )
    record = _describe(source) | {"seconds": round(time.monotonic() - began, 3)}
    left_out = LeftOut(source.index.left_out, source.index.left_out_first)
    if left_out.counts:
        print(left_out, file=sys.stderr)
    if arguments.json:
        print(json.dumps(record))
    else:
        print(
            f"{source.path}: {source.n_tokens:,} tokens of {source.n_documents:,} documents in "
            f"{len(source.index.shards):,} shards ({source.dtype.name}), {record['seconds']:.1f} s"
        )
    return 0


@contextmanager
def _bar(what: str, fields: str) -> Iterator[Callable[..., None]]:
    """A progress line over bytes, at a terminal."""
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TextColumn(fields), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, documents=0)
        yield lambda **values: bar.update(task, **values)


@contextmanager
def _progress_bar() -> Iterator[Callable[[tokenizing.Progress], None]]:
    columns = (
        TextColumn("tokenizing"),
        BarColumn(),
        DownloadColumn(),
        TextColumn("{task.fields[tokens]:,} tokens, {task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("tokenize", total=None, tokens=0, rate=0.0)
        began, at_start = time.monotonic(), -1

        def update(progress: tokenizing.Progress) -> None:
            nonlocal at_start
            # The rate of a resumed run excludes the tokens that it found.
            at_start = progress.tokens if at_start < 0 else at_start
            rate = (progress.tokens - at_start) / max(time.monotonic() - began, 1e-9)
            bar.update(
                task,
                completed=progress.bytes_read,
                total=progress.bytes_total,
                tokens=progress.tokens,
                rate=rate,
            )

        yield update


def _inspect(arguments: argparse.Namespace) -> int:
    if arguments.show < 0:
        raise UserError(f"--show is {arguments.show}; expected 0 or more tokens")
    records = []
    for path in arguments.paths:
        vocabulary = load_tokenizer(arguments.tokenizer).n_vocab if arguments.tokenizer else None
        source = open_source(SourceConfig(path=path, dtype=arguments.dtype), vocabulary)
        record = _describe(source)
        if arguments.verify:
            source.verify(vocabulary)
            record["verified"] = "sha256 of every file" if isinstance(source, ShardSource) else "every id, no checksums"
        if arguments.show:
            record |= _first_tokens(source, arguments.show, arguments.tokenizer)
        records.append(record)
    if arguments.json:
        print(json.dumps(records, indent=1))
        return 0
    total = sum(record["tokens"] for record in records)
    for record in records:
        share = f" ({record['tokens'] / total:.1%} of {total:,})" if len(records) > 1 else ""
        print(record.pop("path"))
        for name, value in record.items():
            text = f"{value:,}" if isinstance(value, int) else str(value)
            # Quoted, because the first tokens of a text may contain line breaks.
            text = repr(value) if name == "first_text" else text
            text = ", ".join(f"{count:,} {why}" for why, count in value.items()) or "0" if name == "left_out" else text
            print(f"  {name.replace('_', ' '):<22} {text}{share if name == 'tokens' else ''}")
    sys.stdout.flush()
    return 0


def _describe(source: TokenSource) -> dict[str, Any]:
    record: dict[str, Any] = {
        "path": source.path,
        "tokens": source.n_tokens,
        "documents": source.n_documents,
        "dtype": source.dtype.name,
        "fingerprint": source.fingerprint,
    }
    if isinstance(source, ShardSource):
        index = source.index
        record |= {
            "text_bytes": index.text_bytes,
            "shards": len(index.shards),
            "largest_token": index.max_token,
            "tokenizer": index.tokenizer.name,
            "tokenizer_fingerprint": index.tokenizer.fingerprint,
            "left_out": index.left_out,
        }
    return record


def _first_tokens(source: TokenSource, count: int, name: str | None) -> dict[str, Any]:
    ids = source.read(0, min(count, source.n_tokens)).tolist()
    tokenizer = _tokenizer_of(source, name)
    if tokenizer is None:
        return {"first_tokens": ids}
    if isinstance(tokenizer, str):
        return {"first_tokens": ids, "not_decoded": tokenizer}
    return {"first_tokens": ids, "first_text": tokenizer.decode(ids)}


def _tokenizer_of(source: TokenSource, name: str | None) -> Tokenizer | str | None:
    """The tokenizer to decode with; None if none is recorded; a message if the recorded one is not available."""
    if name is not None:
        return load_tokenizer(name)
    if not isinstance(source, ShardSource):
        return None
    try:
        tokenizer = load_tokenizer(source.index.tokenizer.name)
    except UserError as error:
        return str(error)
    if tokenizer.fingerprint != source.tokenizer_fingerprint:
        return f"tokenizer {tokenizer.name!r} here differs from the one that the shards record; give --tokenizer"
    return tokenizer
