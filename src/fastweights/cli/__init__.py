"""The command line: a table of commands (`fastweights.cli.table`), each a small function in this package."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from fastweights.cli.output import lasting_streams
from fastweights.cli.table import COMMANDS, GROUPS, Command
from fastweights.errors import UserError, is_out_of_memory, nearest


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error of the user, 130 after Ctrl-C.

    Raises:
        SystemExit: with code 2 for arguments that do not exist or an output that cannot be written, 143 after SIGTERM.
    """
    with suppress(ValueError):  # not in the main thread: signals are somebody else's
        signal.signal(signal.SIGTERM, _terminate)
    with lasting_streams():
        namespace = parse(sys.argv[1:] if arguments is None else arguments)
        try:
            return namespace.run(namespace) or 0
        except UserError as error:
            problem = str(error)
        except KeyboardInterrupt:
            return 130
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            problem = (
                "There is not enough memory; make the batch size, the segments or sequences (task), or the sizes of "
                "the model (hidden_size, memory_size) smaller."
            )
        print(_sentence(problem), end="", file=sys.stderr)
        return 2


def _sentence(problem: str) -> str:
    """A problem on one line, whatever line feeds its names and paths have."""
    return f"fastweights: {' '.join(problem.splitlines())}\n"


def _terminate(number: int, frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse a command line; `overrides` are its settings of a recipe, such as `--training.steps=5`."""
    parser = build_parser()
    joined = _join_settings(arguments)
    overrides = [word for word in joined if _is_setting(word)]
    for word in joined:
        if word.startswith("--") and word.endswith("=--"):  # which argparse takes for the end of the options
            parser.error(f"{word} has no value")
    namespace, unknown = parser.parse_known_args([word for word in joined if not _is_setting(word)])
    unknown += [] if namespace.takes_overrides else overrides
    if unknown:
        namespace.parser.refuse(unknown)
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
    parser = _Parser(
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


def _add(command: Command, add_parser: Callable[..., _Parser], name: str) -> None:
    parser = add_parser(
        name,
        help=command.summary,
        description=command.summary,
        epilog=command.epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(run=command.run, takes_overrides=command.takes_overrides, parser=parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    for argument in command.arguments:
        parser.add_argument(*argument.names, **argument.options)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, _sentence(f"{message}; see `{self.prog} --help`."))

    def refuse(self, unknown: list[str]) -> NoReturn:
        """End with the arguments that do not exist, and the one that is most like the first."""
        known = [name for name in self._option_string_actions if name.startswith("--")]
        first = unknown[0].partition("=")[0]
        advice = nearest(first, known) if first.startswith("--") else ""
        advice = f"{advice} See" if advice else "; leave them out, or see"
        self.exit(2, _sentence(f"unrecognized arguments: {' '.join(unknown)}{advice} `{self.prog} --help`."))


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        import fastweights

        print(fastweights.__version__)
        parser.exit()
