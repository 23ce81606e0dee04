"""`gpt3-jax train`."""

from __future__ import annotations

import shlex
import sys

from gpt3_jax.config import Config, build_parser, load_config, to_yaml

_DESCRIPTION = """Trains a GPT-3. Without a configuration: the quickstart, a small GPT-3 on the text of the Python
standard library that is on this machine (ten minutes on two CPU cores, nothing is downloaded). A run whose folder
(train.run_dir) holds a checkpoint goes on from it."""


def main(argv: list[str]) -> int:
    paths, overrides, flags = _split(argv)
    if "--help" in flags:
        parser = build_parser("gpt3-jax train", " ".join(_DESCRIPTION.split()))
        parser.add_argument("--print-config", action="store_true", help="Print the configuration as YAML and leave.")
        parser.add_argument(
            "--verify-recipe",
            action="store_true",
            help="Print each quantity of the paper's recipe beside the configuration's, deviations marked, and leave.",
        )
        parser.print_help()
        return 0
    from gpt3_jax.train import quickstart

    config = load_config(paths or [quickstart.CONFIG], overrides)
    if "--print-config" in flags:
        sys.stdout.write(to_yaml(config))
        return 0
    if "--verify-recipe" in flags:
        from gpt3_jax.train import recipe

        print(recipe.render(config))
        return 0
    return _train(config, paths, overrides)


def _split(argv: list[str]) -> tuple[list[str], list[str], set[str]]:
    """Configuration files, overrides, and flags."""
    from gpt3_jax.errors import UserError

    paths: list[str] = []
    overrides: list[str] = []
    flags: set[str] = set()
    rest = iter(argv)
    for argument in rest:
        if argument in ("-h", "--help"):
            flags.add("--help")
        elif argument in ("--print-config", "--verify-recipe"):
            flags.add(argument)
        elif argument == "--config":
            path = next(rest, None)
            if path is None:
                raise UserError("--config expects the path of a YAML file, or the name of a shipped configuration")
            paths.append(path)
        elif argument.startswith("--config="):
            paths.append(argument.removeprefix("--config="))
        else:
            overrides.append(argument)
    return paths, overrides, flags


def _train(config: Config, paths: list[str], overrides: list[str]) -> int:
    from gpt3_jax.parallel import distributed
    from gpt3_jax.train import loop, quickstart

    distributed.start(config.distributed)
    say = loop.say_to_stderr
    started = quickstart.prepare(config, say) if quickstart.wanted(config) else None
    result = loop.run(started.config if started else config, say)
    if distributed.is_lead():
        same = shlex.join(["gpt3-jax", "train", *(a for path in paths for a in ("--config", path)), *overrides])
        if result.stopped:
            say(f"stopped by {result.stopped} at {result.tokens:,} tokens; go on with\n  {same}")
        else:
            print(f"trained on {result.tokens:,} tokens; checkpoints in {result.checkpoint}")
            if started:
                print(quickstart.verdict(started, result))
            print(_next_steps(config, paths, overrides))
    distributed.shutdown()
    return 0


def _next_steps(config: Config, paths: list[str], overrides: list[str]) -> str:
    run_dir = config.train.run_dir
    more = ["--train.tokens", f"{2 * config.train.tokens}"]
    longer = ["gpt3-jax", "train", *(a for path in paths for a in ("--config", path)), *overrides, *more]
    return "\n".join(
        [
            "next:",
            f"  {shlex.join(['gpt3-jax', 'generate', run_dir, '--prompt', 'def '])}   # let it write",
            f"  {shlex.join(longer)}   # resume, and train twice as long",
            "  gpt3-jax train --config gpt3-small --verify-recipe   # scale up: the paper's sizes, in configs/",
        ]
    )
