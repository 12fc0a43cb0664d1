"""The command line: a table of commands (`fastweights.cli.table`), each a small function in this package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from fastweights.cli.table import COMMANDS, GROUPS, Command
from fastweights.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error of the user, 130 after Ctrl-C."""
    namespace = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return namespace.run(namespace) or 0
    except UserError as error:
        print(f"fastweights: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; `overrides` are its settings of a recipe, such as `--training.steps=5`."""
    parser = build_parser()
    joined = _join_settings(arguments)
    overrides = [word for word in joined if _is_setting(word)]
    namespace = parser.parse_args([word for word in joined if not _is_setting(word)])
    if overrides and not namespace.takes_overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    namespace.overrides = overrides
    return namespace


def _is_setting(word: str) -> bool:
    """Whether a word begins a setting of a recipe: `--training.steps`, or a whole part, `--task=retrieval`."""
    key = word.partition("=")[0]
    return key.startswith("--") and ("." in key or key in ("--task", "--objective", "--model"))


def _join_settings(arguments: list[str]) -> list[str]:
    """Arguments with `--training.steps 5` as one word, so that its value is no positional argument."""
    joined: list[str] = []
    for word in arguments:
        last = joined[-1] if joined else ""
        if _is_setting(last) and "=" not in last and not word.startswith("--"):
            joined[-1] = f"{last}={word}"
        else:
            joined.append(word)
    return joined


def build_parser() -> argparse.ArgumentParser:
    """The parser of the table of commands."""
    parser = argparse.ArgumentParser(
        prog="fastweights",
        description="Sequence models with fast weights: train, evaluate, compare.",
        epilog="Quick start:  fastweights train catbabi-qa/fwm-quick",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    groups = {"": parser.add_subparsers(metavar="COMMAND", required=True)}
    for name, about in GROUPS.items():
        commands = groups[""].add_parser(name, help=about, description=about)
        groups[name] = commands.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        group, _, name = command.name.rpartition(" ")
        _add(command, groups[group].add_parser, name)
    return parser


def _add(command: Command, add_parser: Callable[..., argparse.ArgumentParser], name: str) -> None:
    parser = add_parser(
        name,
        help=command.summary,
        description=command.summary,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=command.run, takes_overrides=command.takes_overrides)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    for argument in command.arguments:
        parser.add_argument(*argument.names, **argument.options)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        import fastweights

        print(fastweights.__version__)
        parser.exit()
