"""`gpt3-jax convert`: converts models from and to Hugging Face's GPT-2 and GPT-Neo formats."""

from __future__ import annotations

import argparse
import shlex

from gpt3_jax.paths import local_path

_DESCRIPTION = """Converts between runs of this project and models in Hugging Face's format: GPT-2 when every layer is
dense, GPT-Neo when dense and banded layers alternate. Needs the extra hf: pip install -c constraints.txt -e '.[hf]'."""

_TO_HF = """Writes the newest checkpoint of a run as a folder that Hugging Face's from_pretrained reads: config.json and
model.safetensors in fp32, without vocabulary padding and without a tokenizer. GPT-Neo has no biases of queries, keys
and values: those of a banded model are folded into other parameters, which leaves the function unchanged."""

_FROM_HF = """Writes a run folder from a GPT-2 or GPT-Neo model on this machine (config.json with model.safetensors,
its shards, or pytorch_model.bin). `gpt3-jax generate` completes prompts with it. Training can continue from it, with a
fresh optimizer."""


def main(argv: list[str]) -> int:
    """Converts, prints the next commands, and returns the exit code.

    Raises:
        UserError: files are missing or do not form such a model, or the target exists.
        RunError: the target cannot be written.
    """
    arguments = _parser().parse_args(argv)
    from gpt3_jax.interop.runs import run_from_hf, run_to_hf

    if arguments.direction == "to-hf":
        config = run_to_hf(arguments.run_dir, arguments.hf_dir)
        print(f"wrote {arguments.hf_dir}; tokenizer: {config.data.tokenizer}")
        return 0
    run_from_hf(arguments.hf_dir, arguments.run_dir, arguments.tokenizer)
    run_dir = shlex.quote(arguments.run_dir)
    print(
        f"wrote {arguments.run_dir}; next:\n"
        f"  gpt3-jax generate {run_dir} --prompt 'The '\n"
        f"  gpt3-jax train --config {run_dir}/config.yaml --checkpoint.on_change accept --data.train '[{{path: DIR}}]'"
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpt3-jax convert", description=" ".join(_DESCRIPTION.split()))
    directions = parser.add_subparsers(dest="direction", required=True, metavar="DIRECTION")
    to_hf = directions.add_parser("to-hf", help="a run to Hugging Face", description=" ".join(_TO_HF.split()))
    to_hf.add_argument("run_dir", type=local_path, metavar="RUN_DIR", help="folder of a run: its train.run_dir")
    to_hf.add_argument("hf_dir", type=local_path, metavar="HF_DIR", help="folder to write; must not exist, or be empty")
    from_hf = directions.add_parser("from-hf", help="Hugging Face to a run", description=" ".join(_FROM_HF.split()))
    from_hf.add_argument("hf_dir", type=local_path, metavar="HF_DIR", help="folder with config.json and the weights")
    from_hf.add_argument("run_dir", type=local_path, metavar="RUN_DIR", help="run folder to write; must not hold a run")
    from_hf.add_argument(
        "--tokenizer",
        type=local_path,
        metavar="NAME",
        help="the tokenizer that the model was trained with: r50k_base (GPT-2's and GPT-Neo's), bytes, or the path of "
        "a tiktoken rank file or of a folder with tokenizer.json, or vocab.json and merges.txt (default: HF_DIR, or "
        "r50k_base if it has no such files)",
    )
    return parser
