"""`gpt3-jax generate`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt3_jax.cluster.log import log
from gpt3_jax.config import load_devices, split_overrides
from gpt3_jax.errors import UserError
from gpt3_jax.paths import local_path

if TYPE_CHECKING:
    from gpt3_jax.generation import Beam, Generator, Piece, Sampling

_DESCRIPTION = """Completes prompts with the newest checkpoint of a run, or a GPT-2 or GPT-Neo model in Hugging Face's
format, token by token. Prompts come from --prompt, a --file, or standard input: piped input is one prompt; at a
terminal each line is one, until Ctrl-D. Only the completion is printed. It ends at end-of-text, in front of a --stop
text, after --max-tokens, or when prompt and completion fill the model's context. An empty prompt begins a document."""

_MANY = 16
"""Hypotheses of a beam search beyond which a line says what it waits for."""
_EPILOG = """several devices:
  gpt3-jax generate runs/xl --prompt 'The sun' --parallel.data 1 --parallel.tensor 8
The options --parallel.… and --distributed.… are those of gpt3-jax train: a mesh over all devices. Without any, the
first device is used. Weights are split over tensor, completions over data. In a run of several processes, prompts come
from --prompt or --file."""


def main(argv: list[str]) -> int:
    """Prints completions to stdout and returns the exit code.

    Raises:
        UserError: no checkpoint, a prompt longer than the context, an option out of range.
        RunError: no checkpoint can be read.
    """
    parser = _parser()
    own, dotted = split_overrides(argv, ("parallel", "distributed"))
    arguments = parser.parse_args(own)
    parallel, distributed = load_devices(dotted)
    if arguments.beams is not None:
        for name in ("temperature", "top_k", "top_p", "samples", "seed"):
            if getattr(arguments, name) != parser.get_default(name):
                raise UserError(f"--beams draws no samples; leave out --{name.replace('_', '-')}, or --beams")
    prompts = _prompts(arguments)

    from gpt3_jax.config import DistributedConfig
    from gpt3_jax.evals.loading import started
    from gpt3_jax.generation import Beam, Generator, Sampling

    sampling = Sampling(arguments.temperature, arguments.top_k, arguments.top_p)
    beam = None if arguments.beams is None else Beam(arguments.beams)
    # Without options for several devices it stays by itself, also inside a cluster's job.
    with started(distributed if dotted else DistributedConfig(mode="off")):
        _complete(Generator.load(arguments.run_dir, parallel, arguments.weights), prompts, arguments, sampling, beam)
    return 0


def _complete(
    generator: Generator,
    prompts: list[str] | None,
    arguments: argparse.Namespace,
    sampling: Sampling,
    beam: Beam | None,
) -> None:
    """Prints the completions; of several processes, the lead alone."""
    import jax

    from gpt3_jax.cluster.agreement import is_lead
    from gpt3_jax.generation import Piece

    if not (arguments.prompt or arguments.file) and jax.process_count() > 1:
        raise UserError("each process of a run needs the same prompts; give them with --prompt or --file")

    def stream(prompts: list[str]) -> Iterator[Piece]:
        if beam is not None:
            if beam.width > _MANY:
                log.info(
                    f"{beam.width:,} hypotheses are continued for each prompt; a completion is printed when it is "
                    f"finished, after {arguments.max_tokens} tokens at most"
                )
            encoded = generator.encode(prompts)
            found = generator.complete(encoded, arguments.stop, arguments.max_tokens, beam)
            return (Piece(i, 0, answer.text, answer.tokens, answer.finish) for i, answer in found)
        return generator.stream(
            prompts,
            max_tokens=arguments.max_tokens,
            sampling=sampling,
            samples=arguments.samples,
            seed=arguments.seed,
            stop=arguments.stop,
        )

    if prompts is not None:
        if not is_lead():
            for _ in stream(prompts):
                pass
        elif arguments.json:
            print(json.dumps(_records(prompts, stream(prompts), generator), indent=1))
        else:
            _show(prompts, stream(prompts), generator, arguments.samples)
        return
    while (line := _ask()) is not None:
        try:
            _show([line], stream([line]), generator, arguments.samples)
        except UserError as error:  # a prompt that is too long does not end the session
            print(f"gpt3-jax: error: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpt3-jax generate",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "run_dir",
        type=local_path,
        metavar="RUN_OR_HF_FOLDER",
        help="folder of a run (its train.run_dir), or one with config.json and the weights",
    )
    parser.add_argument(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="a prompt; may be given several times (default: see above)",
    )
    parser.add_argument(
        "--file",
        type=local_path,
        metavar="FILE",
        help="a text file that is one prompt, without the newline at its end (default: none)",
    )
    parser.add_argument(
        "--max-tokens", type=int, default=128, metavar="N", help="maximum tokens per completion (default: %(default)s)"
    )
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="a completion ends in front of this text, also where it begins or ends inside a token; may be given "
        "several times (default: none)",
    )
    parser.add_argument(
        "--beams",
        type=int,
        metavar="N",
        help="beam search with N hypotheses and GPT-3's length penalty, ((5 + tokens) / 6)^0.6, instead of samples; "
        "each completion is printed when it is finished (default: samples)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="divides the logits; 0: always the likeliest token (default: %(default)s)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K likeliest tokens only; 0: from all (default: %(default)s)",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the smallest set of likeliest tokens that reaches probability P, after --temperature and "
        "--top-k; 1: from all (default: %(default)s)",
    )
    parser.add_argument(
        "--samples", type=int, default=1, metavar="N", help="completions of each prompt (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="the same seed gives the same texts, for the same prompts and options on the same devices; beside other "
        "prompts, rounding may change a text (default: %(default)s)",
    )
    parser.add_argument(
        "--weights",
        choices=("float32", "bfloat16", "int8"),
        help="float32, bfloat16: weights and arithmetic in this dtype in place of the model's; int8: matrices in int8, "
        "a scale for each output channel, and arithmetic in the model's dtype: half the memory of bfloat16. A message "
        "says how far the weights are from the checkpoint's (default: the model's dtype)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON list of completions at the end, instead of streaming text"
    )
    return parser


def _prompts(arguments: argparse.Namespace) -> list[str] | None:
    """The prompts; None if they are to be read from the terminal."""
    prompts = list(arguments.prompt or [])
    if arguments.file is not None:
        try:
            content = Path(arguments.file).read_bytes()
        except OSError as error:
            raise UserError(f"prompt file {arguments.file!r} cannot be read: {error.strerror}") from None
        prompts.append(_text(content, f"prompt file {arguments.file!r}"))
    if prompts:
        return prompts
    if not sys.stdin.isatty():
        return [_text(sys.stdin.buffer.read(), "standard input")]
    if arguments.json:
        raise UserError("--json needs a prompt from --prompt, --file or a pipe; at a terminal none was given")
    return None


def _text(content: bytes, what: str) -> str:
    """A prompt from a file or a pipe, without the newline that editors and `echo` append."""
    try:
        return content.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} is not UTF-8 text (byte {error.start}); convert it") from None


def _ask() -> str | None:
    """A line from the terminal without its newline; None at Ctrl-D."""
    print("\nprompt> ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        print(file=sys.stderr)
        return None
    return line.removesuffix("\n")


def _records(prompts: list[str], pieces: Iterator[Piece], generator: Generator) -> list[dict[str, object]]:
    texts: dict[tuple[int, int], str] = {}
    last: dict[tuple[int, int], Piece] = {}
    for piece in pieces:
        row = piece.prompt, piece.sample
        texts[row] = texts.get(row, "") + piece.text
        last[row] = piece
    return [
        {
            "prompt": prompts[prompt],
            "sample": sample,
            "text": text,
            "finish": last[prompt, sample].finish,
            "prompt_tokens": len(generator.tokenizer.encode(prompts[prompt])),
            "completion_tokens": last[prompt, sample].tokens,
        }
        for (prompt, sample), text in sorted(texts.items())
    ]


def _show(prompts: list[str], pieces: Iterator[Piece], generator: Generator, samples: int) -> None:
    """Prints completions one below the other. The current one is streamed; later ones are buffered until their turn."""
    order = [(prompt, sample) for prompt in range(len(prompts)) for sample in range(samples)]
    waiting: dict[tuple[int, int], list[Piece]] = {row: [] for row in order}
    shown = 0

    def header(row: tuple[int, int]) -> None:
        if len(order) > 1:
            sample = f", sample {row[1] + 1} of {samples}" if samples > 1 else ""
            print(f"--- prompt {row[0] + 1} of {len(prompts)}{sample} ---", flush=True)

    def show(piece: Piece) -> None:
        nonlocal shown
        print(piece.text, end="", flush=True)
        if piece.finish is None:
            return
        print(flush=True)
        if piece.finish == "context":
            print(f"(the context of {generator.config.n_ctx} tokens is full)", file=sys.stderr)
        shown += 1
        if shown < len(order):
            header(order[shown])
            for early in waiting.pop(order[shown]):
                show(early)

    header(order[0])
    for piece in pieces:
        if shown < len(order) and order[shown] == (piece.prompt, piece.sample):
            show(piece)
        else:
            waiting[piece.prompt, piece.sample].append(piece)
