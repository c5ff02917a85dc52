"""What a command is, and the flags that several commands share.

The file of a command ends in ``COMMAND = Command(…)``. The overview, ``--help`` and shell completion are made from that
object; nothing is run for them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from yolov5_ema.cli._messages import messages_shown
from yolov5_ema.errors import UserError
from yolov5_ema.settings import CONFLICTS
from yolov5_ema.texts import did_you_mean, nearest

PROGRAM = "yolov5-ema"
Flags = argparse._ActionsContainer
"""A parser, or a group of flags in one."""


def _no_flags(parser: Flags) -> None:
    """For a command that has none of its own."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: as it is typed, such as ``data coco``.
        summary: a line for the overview.
        run: carries it out. It gets the command's own flags, parsed, and the words that go to a script; it gives the
            exit code.
        add_flags: adds the command's own flags to a parser.
        description: the beginning of ``--help``.
        epilog: the end of ``--help``.
        usage: instead of the usage that argparse writes.
        passes_to: the script of YOLOv5 that gets the flags that this command does not know; empty if unknown flags are
            a mistake. A command with the name of its script is that script, whose own ``--help`` is shown.
        passes_all: all words behind the first go to a script as they are.
        only_looks: it looks at files, so that standing in a folder that looks like a clone does not make its code run.
    """

    name: str
    summary: str
    run: Callable[[argparse.Namespace, list[str]], int]
    add_flags: Callable[[argparse.ArgumentParser], None] = _no_flags
    description: str = ""
    epilog: str = ""
    usage: str | None = None
    passes_to: str = ""
    passes_all: bool = False
    only_looks: bool = False

    @property
    def is_script(self) -> bool:
        """Whether the command is one of YOLOv5's own scripts."""
        return self.name == self.passes_to

    @property
    def leaves_verbose(self) -> bool:
        """Whether ``--verbose`` behind the command's name is YOLOv5's flag of that name."""
        return self.passes_all or self.passes_to in ("val", "export")

    def parser(self) -> argparse.ArgumentParser:
        """A parser of the flags that the command knows itself."""
        parser = _Parser(
            prog=f"{PROGRAM} {self.name}",
            usage=self.usage,
            description=self.description,
            epilog=self.epilog,
            add_help=not self.is_script,
        )
        self.add_flags(parser)
        add_common_flags(parser.add_argument_group("flags of every command"), verbose=not self.leaves_verbose)
        return parser

    def help_of_own_flags(self) -> str:
        """What ``--help`` of one of YOLOv5's scripts says of the flags that are not YOLOv5's."""
        parser = _Parser(usage=argparse.SUPPRESS, add_help=False)
        if self.is_script:
            parser._optionals.title = f"{PROGRAM}'s own flags of this command"
            self.add_flags(parser)
        common = parser.add_argument_group(f"{PROGRAM}'s own flags, which every command takes")
        add_common_flags(common, verbose=not self.leaves_verbose)
        return parser.format_help()

    def parse(
        self, argv: Sequence[str], common: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The command's own flags, and the words that go to a script.

        Args:
            argv: the words behind the command's name.
            common: flags of every command that were taken off the line before.

        Raises:
            SystemExit: from argparse, for ``--help`` or a mistake.
        """
        words = list(argv)
        if self.passes_all and words[:1] == ["--"]:
            words.pop(0)
        own, behind = (words[:1], words[1:]) if self.passes_all else (words, [])
        parser = self.parser()
        args, rest = parser.parse_known_args(own, common)
        if rest and not self.passes_to:
            parser.error(f"unrecognized arguments: {' '.join(rest)}{_near_flag(rest[0], parser)}")
        return args, rest + behind

    def main(self, argv: Sequence[str], common: argparse.Namespace | None = None) -> int:
        """Parse the words behind the command's name and carry it out; returns the exit code. See `parse`."""
        args, rest = self.parse(argv, common)
        with messages_shown(quiet=args.quiet, verbose=getattr(args, "verbose", False)), self._surroundings():
            return self.run(args, rest)

    def _surroundings(self) -> AbstractContextManager[None]:
        if not self.only_looks:
            return nullcontext()
        from yolov5_ema.upstream.locate import leaving_working_folder_alone

        return leaving_working_folder_alone()


@dataclass(frozen=True)
class Group:
    """Commands under one name, each in a file of its own.

    Attributes:
        name: as it is typed; empty for the program itself.
        summary: a line for the overview.
        modules: the files by the names of the commands; each has a ``COMMAND``.
        heading: the beginning of the overview.
        closing: its end.
    """

    name: str
    summary: str
    modules: Mapping[str, str]
    heading: str = ""
    closing: str = "Each has a --help."

    def commands(self) -> Iterator[tuple[str, AnyCommand]]:
        """All of them, with the names by which this group knows them."""
        return ((name, self.command(name)) for name in self.modules)

    def command(self, name: str) -> AnyCommand:
        """The command of a name.

        Raises:
            UserError: there is none.
        """
        if name not in self.modules:
            where = f"{self.name}: " if self.name else ""
            more = "" if self.name else f". See {PROGRAM} --help"
            hint = did_you_mean(nearest(name, self.modules))
            raise UserError(f"{where}no command {name!r}{hint} There are: {', '.join(self.modules)}{more}")
        found: AnyCommand = importlib.import_module(self.modules[name]).COMMAND
        return found

    def overview(self) -> str:
        """A line for each command."""
        usage = f"usage: {' '.join(filter(None, (PROGRAM, self.name)))} COMMAND [flags]"
        width = max(9, *map(len, self.modules))
        lines = [f"  {name:{width}} {command.summary}" for name, command in self.commands()]
        return "\n".join([self.heading or usage, "", *lines, "", self.closing])

    def main(self, argv: Sequence[str], common: argparse.Namespace | None = None) -> int:
        """Run the command that the words begin with; without one, say which there are. Returns the exit code."""
        if not argv or argv[0] in ("-h", "--help"):
            print(self.overview())
            return 0
        return self.command(argv[0]).main(argv[1:], common)


AnyCommand = Command | Group


class _Parser(argparse.ArgumentParser):
    """argparse's without abbreviations; descriptions of several lines are printed as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=_Formatter)


class _Formatter(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def own_parser(add_flags: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """A parser of a few flags that are taken off a line which goes on to a script."""
    parser = _Parser(add_help=False)
    add_flags(parser)
    return parser


def _near_flag(word: str, parser: argparse.ArgumentParser) -> str:
    typed = word.partition("=")[0]
    flags = [flag for action in parser._actions for flag in action.option_strings]
    longer = [flag for flag in flags if flag.startswith(typed)]
    return did_you_mean(longer[:1] or nearest(typed, flags), otherwise="") if word.startswith("--") else ""


# --- flags that commands share ---------------------------------------------------------------


def also_called(flags: Flags, action: argparse.Action, *names: str) -> None:
    """Let a flag go on working by names that it had before; no help and no completion lists them."""
    for name in names:
        flags._option_string_actions[name] = action


def add_common_flags(flags: Flags, *, verbose: bool = True) -> None:
    """The flags that every command takes, anywhere on the line; YOLOv5's parsers never see them."""
    flags.add_argument(
        "--yolov5",
        metavar="PATH",
        help="use the YOLOv5 in this folder (default: a clone in the working directory, else the PyPI package)",
    )
    flags.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import a module of yours that calls register_block (repeatable)",
    )
    flags.add_argument(
        "--conflicts", choices=CONFLICTS, help="which block a name means if both have that name"
    )
    flags.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle checkpoints whatever they hold: this runs the code in them",
    )
    flags.add_argument("--quiet", action="store_true", help="only results, warnings and errors")
    if verbose:
        flags.add_argument("--verbose", action="store_true", help="also say how things were found and chosen")


def add_output(
    flags: Flags,
    help: str,
    *,
    old: Sequence[str] = (),
    metavar: str = "FILE",
    default: Path | None = None,
    required: bool = False,
) -> None:
    """``-o/--output``: the file or folder that the command writes."""
    action = flags.add_argument(
        "-o", "--output", type=Path, metavar=metavar, default=default, required=required, help=help
    )
    also_called(flags, action, *old)


def add_force(flags: Flags, help: str = "replace files that are there") -> None:
    """``--force``."""
    flags.add_argument("--force", action="store_true", help=help)


def add_switch_off(flags: Flags, flag: str, help: str, *, old: str) -> None:
    """A ``--no-…``; its value goes by the flag's name."""
    also_called(flags, flags.add_argument(flag, action="store_true", help=help), old)


def add_json(flags: Flags, help: str = "print JSON") -> None:
    """``--json``: JSON on standard output, and nothing else there; see `results_alone`."""
    flags.add_argument("--json", action="store_true", help=help)


def add_json_or_file(flags: Flags) -> None:
    """``--json`` as in `add_json`, or ``--json FILE``: the figures into a file as well."""
    flags.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="print JSON instead of tables; with FILE, write it there too",
    )


def is_bare_json(args: argparse.Namespace) -> bool:
    """Whether the flag of `add_json_or_file` stands without a FILE."""
    return args.json is not None and not args.json


@contextmanager
def results_alone(wanted: object) -> Iterator[TextIO]:
    """Standard output; if wanted, for the length of the block all else that is printed goes to standard error."""
    with contextlib.ExitStack() as stack:
        output = sys.stdout
        if wanted:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield output


def print_json(content: Any, output: TextIO) -> None:
    """Print an object as JSON."""
    print(json.dumps(content, indent=2), file=output)


def add_image_size(
    flags: Flags, help: str = "pixels (default: 640)", *, default: int | None = 640, sides: int = 1
) -> None:
    """``--imgsz``, by the names that YOLOv5 has for it; a list of numbers if there may be more than one side."""
    names = ("--imgsz", "--img", "--img-size")
    if sides == 1:
        flags.add_argument(*names, type=int, default=default, metavar="N", help=help)
    else:
        flags.add_argument(*names, type=int, default=[default], nargs="+", metavar="N", help=help)


def check_image_size(imgsz: int | None, least: int = 1) -> None:
    """Raise a UserError for a size that no image has."""
    if imgsz is not None and not least <= imgsz <= 100_000:
        raise UserError(f"--imgsz {imgsz}: the side of an image in pixels, such as 640")


def add_device(
    flags: Flags,
    help: str = "cpu, or the number of a GPU (default: a GPU if there is one)",
    *,
    default: str = "",
) -> None:
    """``--device``."""
    flags.add_argument("--device", default=default, help=help)


def add_thresholds(flags: Flags) -> None:
    """Which boxes of a detector count, as in YOLOv5's detect."""
    flags.add_argument("--conf-thres", type=float, default=0.25, metavar="X", help="default: 0.25")
    flags.add_argument("--iou-thres", type=float, default=0.45, metavar="X", help="default: 0.45")
    flags.add_argument("--max-det", type=int, default=1000, metavar="N", help="an image (default: 1000)")


def check_shares(args: argparse.Namespace, *names: str) -> None:
    """Raise a UserError unless the flags of these names lie between 0 and 1."""
    for name in names:
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} must be 0 to 1, not {getattr(args, name)}")


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raise a UserError unless the flags of these names, where they were given, are 1 or more."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def add_run_folder(flags: Flags, project: str) -> None:
    """Where the run folder goes, as in YOLOv5."""
    flags.add_argument(
        "--project", type=Path, default=Path(project), metavar="DIR", help=f"default: {project}"
    )
    flags.add_argument(
        "--name", default="exp", help="of the run folder; exp2, exp3 … if it is taken (default: exp)"
    )
    flags.add_argument("--exist-ok", action="store_true", help="use the folder even if it is taken")
