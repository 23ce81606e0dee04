"""`gpt3-jax lm-eval`: the command line of lm-evaluation-harness, with this project's models in it."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator
from types import TracebackType

from gpt3_jax.errors import RunError, UserError

HELP = """\
usage: gpt3-jax lm-eval [run] --model_args pretrained=FOLDER[,NAME=VALUE...] --tasks NAMES [OPTIONS OF THE HARNESS]
       gpt3-jax lm-eval ls tasks | validate --tasks NAMES

Runs EleutherAI's lm-evaluation-harness on a run or on a Hugging Face model (GPT-2, GPT-Neo). Everything after lm-eval
goes to the harness's own command line unchanged; its model gpt3-jax is there too, and is the default of --model.
gpt3-jax lm-eval run --help lists the harness's options. It needs the extra evals:
pip install -c constraints.txt -e '.[evals]'

Its protocol is not the GPT-3 paper's: gpt3_jax/evals/harness/README.md says where they differ. gpt3-jax evaluate
follows the paper.

--model_args of the model gpt3-jax:
  pretrained=FOLDER   folder of a run (its train.run_dir) or of a Hugging Face model (required)
  tokenizer=NAME      as data.tokenizer (default: the model's own)
  dtype=NAME          float32 or bfloat16 (default: the run's own; float32 for a Hugging Face model)
  replica=N, data=N, tensor=N, stage=N
                      a mesh over all devices and the ZeRO stage by which it keeps the weights, as --parallel.* of
                      train (default: the first device alone)
  batch_tokens=N      tokens that a device computes at once, padding included (default: 4096 on a CPU, else 16384)
  max_length=N        tokens of context (default: the model's, n_ctx)
  max_gen_toks=N      tokens to generate where a task does not say (default: 256)
  seed=N              of sampling, for tasks with do_sample (default: 0)

--batch_size and --device have no effect on it: requests are batched by their tokens, and JAX chooses its devices.
A --config FILE of the harness names its model itself.

examples:
  gpt3-jax lm-eval --model_args pretrained=runs/small --tasks lambada_openai,hellaswag
  gpt3-jax lm-eval --model_args pretrained=runs/xl,tensor=8,stage=3 --tasks arc_easy --num_fewshot 5 --output_path out
  HF_HUB_OFFLINE=1 gpt3-jax lm-eval --model_args pretrained=runs/small --include_path my-tasks --tasks my_task
"""
_THEIRS = {"lm_eval", "datasets", "evaluate", "huggingface_hub", "pyarrow", "yaml", "jinja2", "fsspec"}
"""Packages whose errors are about the user's tasks, files or arguments."""


def main(argv: list[str]) -> int:
    """Runs the harness's command line.

    Raises:
        UserError: the harness is not installed; a wrong model argument; a folder of tasks that is not there.
        RunError: what the harness, or what reads its data sets, refuses.
        SystemExit: as the harness's argparse does.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP, end="", file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    _require_folders(argv)
    try:
        import lm_eval.models  # noqa: F401  registers the harness's own models, as it does only where there are none
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import register_model
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "lm_eval":
            raise
        raise UserError(
            "lm-evaluation-harness is not installed; install it: pip install -c constraints.txt -e '.[evals]'"
        ) from None

    from gpt3_jax.cluster.leaving import NoneLeftWaiting
    from gpt3_jax.cluster.start import shutdown, start
    from gpt3_jax.config import DistributedConfig
    from gpt3_jax.evals.harness.model import HarnessModel
    from gpt3_jax.evals.harness.options import NAME

    register_model(NAME)(HarnessModel)
    start(DistributedConfig())
    given = sys.argv
    # The harness's command line has no other way in.
    sys.argv = ["lm-eval", *arguments(argv)]
    try:
        with NoneLeftWaiting(), _pools_without_jax():
            cli_evaluate()
            shutdown()
    except Exception as error:
        if isinstance(error, UserError | RunError) or not _THEIRS & _callers(error.__traceback__):
            raise
        logging.getLogger("lm_eval").debug("where it was raised:", exc_info=error)
        raise RunError(f"lm-evaluation-harness: {_one_line(error)} (LMEVAL_LOG_LEVEL=DEBUG shows where)") from None
    finally:
        sys.argv = given
    return 0


def _require_folders(argv: list[str]) -> None:
    """Raises UserError for an --include_path that is not there, in which the harness would find no task."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        name, equals, value = argument.partition("=")
        folder = value if equals else following
        if name == "--include_path" and not os.path.isdir(folder):
            raise UserError(f"--include_path {folder}: there is no such folder; expected one with tasks' YAML files")


def arguments(argv: list[str]) -> list[str]:
    """The harness's arguments: `run` where no subcommand is named, and this project's model where none is."""
    from gpt3_jax.evals.harness.options import NAME

    argv = ["run", *argv] if argv[0].startswith("-") else argv
    if argv[0] != "run" or len(argv) == 1 or _names_a_model(argv):
        return argv
    return ["run", "--model", NAME, *argv[1:]]


def _names_a_model(argv: list[str]) -> bool:
    return any(
        argument in ("--model", "--config") or argument.startswith(("--model=", "--config=", "-M", "-C"))
        for argument in argv
    )


@contextlib.contextmanager
def _pools_without_jax() -> Iterator[None]:
    """Starts the processes in which the harness bootstraps standard errors from a clean one. Forked from this process
    they could hang, because JAX has threads, and would have its signal handlers."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("forkserver", force=True)
    multiprocessing.set_forkserver_preload(["lm_eval.api.metrics"])
    try:
        yield
    finally:
        multiprocessing.set_start_method(before, force=True)


def _callers(trace: TracebackType | None) -> set[str]:
    """The packages whose code was running below this project's last function: one of them raised, or what it called."""
    found = set[str]()
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).split(".")[0]
        found = set() if package == "gpt3_jax" else found | {package}
        trace = trace.tb_next
    return found


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split()) or type(error).__name__
