"""The `audiotok` command: thin commands over the library, a file each, each importing only what it needs.

Data goes to stdout, everything else to stderr. A mistake of the user is one line and exit code 2.
"""

import argparse
import difflib
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

from audiotok import __version__
from audiotok.cli import (
    best,
    completion,
    data,
    distance,
    doctor,
    encode,
    export,
    extend,
    gap,
    generate,
    init,
    plan,
    report,
    requeue,
    results,
    tokenize,
)
from audiotok.errors import AudiotokError
from audiotok.terminal import prepare_streams
from audiotok.utils.memory import keep_freed_memory
from audiotok.utils.threads import spin_briefly


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: arguments, default those of the process.

    Returns:
        Exit code: 0, 1 for a failed check, 2 for a mistake of the user, 130 if interrupted, 141 if stdout is closed.
    """
    prepare_streams()
    keep_freed_memory()
    spin_briefly(os.environ)
    args = make_parser().parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        code: int = args.run(args) or 0
        sys.stdout.flush()
    except AudiotokError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `audiotok results GRID | head`: no word, nor when Python flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE, as shells have it
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT
    return code


class _Parser(argparse.ArgumentParser):
    """Has each command answer for what it does not know; argparse leaves that to the parser of all commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            names = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
            near = [name for one in rest for name in difflib.get_close_matches(one.partition("=")[0], names, n=1)]
            known = f"; did you mean {', '.join(near)}?" if near else f"; {self.prog} --help lists what there is"
            self.error(f"unrecognized arguments: {' '.join(rest)}{known}")
        return found, rest


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser: argparse.ArgumentParser = _Parser(prog="audiotok", description="Grids of neural audio codec experiments.")
    parser.add_argument("--version", action="version", version=f"audiotok {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (
        results,
        best,
        report,
        plan,
        requeue,
        extend,
        data,
        tokenize,
        encode,
        export,
        gap,
        generate,
        distance,
        doctor,
        init,
    ):
        command.add_to(commands)
    completion.add_to(commands)
    parser.set_defaults(whole=parser)
    return parser
