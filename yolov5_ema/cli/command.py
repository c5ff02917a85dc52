"""What a command is, and the flags that several commands share.

The file of a command ends with ``COMMAND = Command(…)``. The overview, ``--help`` and shell completion are made from
that object, without running the command.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from yolov5_ema.cli._messages import messages_shown
from yolov5_ema.detecting.runtime_names import AUTO, FEWEST_IMAGES, RUNTIMES, TORCH, WORTH_EXPORTING
from yolov5_ema.errors import UserError
from yolov5_ema.settings import CONFLICTS
from yolov5_ema.texts import did_you_mean, nearest
from yolov5_ema.upstream.flags import said_of_unknown
from yolov5_ema.upstream.locate import ignoring_working_folder

PROGRAM = "yolov5-ema"
Flags = argparse._ActionsContainer
"""A parser, or an argument group of a parser."""


def no_flags(parser: Flags) -> None:
    """Add nothing: for a command without flags of its own."""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: what the user types, such as ``data coco``.
        summary: one line for the overview.
        run: runs the command. It takes the command's own parsed flags and the arguments for a script, and returns the
            exit code. For a user's mistake it raises a UserError.
        add_flags: adds the command's own flags to a parser.
        description: the beginning of ``--help``.
        epilog: the end of ``--help``.
        usage: replaces the usage line that argparse writes.
        passes_to: the YOLOv5 script that gets the flags this command does not know. If empty, unknown flags are an
            error. A command with the same name as its script shows the script's own ``--help``.
        passes_all: whether all arguments after the first go to a script unchanged.
        only_looks: whether the command only reads files. If so, code of a YOLOv5 clone in the working directory is not
            run just because the clone is there.
        closes_all: whether everything that it writes is closed when it returns, so that the program can end without a
            last search for garbage.
    """

    name: str
    summary: str
    run: Callable[[argparse.Namespace, list[str]], int]
    add_flags: Callable[[argparse.ArgumentParser], None] = no_flags
    description: str = ""
    epilog: str = ""
    usage: str | None = None
    passes_to: str = ""
    passes_all: bool = False
    only_looks: bool = False
    closes_all: bool = False

    @property
    def is_script(self) -> bool:
        """Whether the command is one of YOLOv5's own scripts."""
        return self.name == self.passes_to

    @property
    def passes_verbose(self) -> bool:
        """Whether ``--verbose`` after the command's name is YOLOv5's own flag."""
        return self.passes_all or self.passes_to in ("val", "export")

    def parser(self) -> argparse.ArgumentParser:
        """A parser for the command's own flags."""
        parser = _Parser(
            prog=f"{PROGRAM} {self.name}",
            usage=self.usage,
            description=self.description,
            epilog=self.epilog,
            add_help=not self.is_script,
        )
        self.add_flags(parser)
        add_common_flags(parser.add_argument_group("flags of every command"), verbose=not self.passes_verbose)
        return parser

    def help_of_own_flags(self) -> str:
        """The part of a YOLOv5 script's ``--help`` that describes the flags of this package."""
        parser = _Parser(usage=argparse.SUPPRESS, add_help=False)
        if self.is_script:
            parser._optionals.title = f"{PROGRAM}'s own flags for this command"
            self.add_flags(parser)
        common = parser.add_argument_group(f"{PROGRAM}'s own flags, which every command takes")
        add_common_flags(common, verbose=not self.passes_verbose)
        return parser.format_help()

    def parse(
        self, argv: Sequence[str], common: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """The command's own flags, and the arguments for a script.

        Args:
            argv: the arguments after the command's name.
            common: flags of every command that were parsed already.

        Raises:
            SystemExit: raised by argparse, for ``--help`` or a mistake.
        """
        words = list(argv)
        if self.passes_all and words[:1] == ["--"]:
            words.pop(0)
        own, behind = (words[:1], words[1:]) if self.passes_all else (words, [])
        parser = self.parser()
        args, rest = parser.parse_known_args(own, common)
        if rest and not self.passes_to:
            parser.error(said_of_unknown(rest, words, parser))
        return args, rest + behind

    def main(self, argv: Sequence[str], common: argparse.Namespace | None = None) -> int:
        """Parse the arguments after the command's name, run the command and return the exit code. See `parse`."""
        args, rest = self.parse(argv, common)
        surroundings = ignoring_working_folder() if self.only_looks else nullcontext()
        with messages_shown(quiet=args.quiet, verbose=getattr(args, "verbose", False)), surroundings:
            return self.run(args, rest)


@dataclass(frozen=True)
class Group:
    """Commands under one name, each in its own file.

    Attributes:
        name: what the user types; empty for the program itself.
        summary: one line for the overview.
        package: where each command has a module of its name, which has a ``COMMAND``.
        names: the names of the commands.
        heading: the beginning of the overview.
        closing: the end of the overview.
        alone: the exit code of the name without a command after it.
    """

    name: str
    summary: str
    package: str
    names: Sequence[str]
    heading: str = ""
    closing: str = "Each has a --help."
    alone: int = 0

    def commands(self) -> Iterator[tuple[str, AnyCommand]]:
        """All commands, each with its name in this group."""
        return ((name, self.command(name)) for name in self.names)

    def command(self, name: str) -> AnyCommand:
        """The command with this name.

        Raises:
            UserError: there is no such command.
        """
        if name not in self.names:
            where = f"{self.name}: " if self.name else ""
            more = "" if self.name else f". See {PROGRAM} --help"
            hint = did_you_mean(nearest(name, self.names))
            raise UserError(f"{where}no command {name!r}{hint} There are: {', '.join(self.names)}{more}")
        found: AnyCommand = importlib.import_module(f"{self.package}.{name}").COMMAND
        return found

    def overview(self) -> str:
        """One line for each command."""
        usage = f"usage: {' '.join(filter(None, (PROGRAM, self.name)))} COMMAND [flags]"
        width = max(9, *map(len, self.names))
        lines = [f"  {name:{width}} {command.summary}" for name, command in self.commands()]
        return "\n".join([self.heading or usage, "", *lines, "", self.closing])

    def main(self, argv: Sequence[str], common: argparse.Namespace | None = None) -> int:
        """Run the command named by the first argument and return the exit code; without one, list the commands."""
        if not argv or argv[0] in ("-h", "--help"):
            print(self.overview())
            return 0 if argv else self.alone
        return self.command(argv[0]).main(argv[1:], common)


AnyCommand = Command | Group


class _Parser(argparse.ArgumentParser):
    """An argparse parser without abbreviated flags. It prints descriptions of several lines unchanged."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False, formatter_class=_Formatter)


class _Formatter(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)


def own_parser(add_flags: Callable[[argparse.ArgumentParser], None]) -> argparse.ArgumentParser:
    """A parser for a few flags that are removed from a command line before a script gets the rest."""
    parser = _Parser(add_help=False)
    add_flags(parser)
    return parser


# --- flags that commands share ---------------------------------------------------------------


def also_called(flags: Flags, action: argparse.Action, *names: str) -> None:
    """Keep a flag's old names working. Help and completion do not list them."""
    for name in names:
        flags._option_string_actions[name] = action


def add_common_flags(flags: Flags, *, verbose: bool = True) -> None:
    """Add the flags that every command takes, anywhere on the line. YOLOv5's parsers never see them."""
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
        help="import your own module that calls register_block (repeatable); timm: list its attention layers as blocks",
    )
    flags.add_argument(
        "--conflicts",
        choices=CONFLICTS,
        help="which block to use if YOLOv5 and this package both have one of that name",
    )
    flags.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="unpickle checkpoints without checking what they hold; this runs any code in them",
    )
    flags.add_argument("--quiet", action="store_true", help="print only results, warnings and errors")
    if verbose:
        flags.add_argument(
            "--verbose", action="store_true", help="also print debugging messages: what was found and chosen"
        )


def add_output(
    flags: Flags,
    help: str,
    *,
    old: Sequence[str] = (),
    metavar: str = "FILE",
    default: Path | None = None,
    required: bool = False,
) -> None:
    """Add ``-o/--output``: the file or folder that the command writes."""
    action = flags.add_argument(
        "-o", "--output", type=Path, metavar=metavar, default=default, required=required, help=help
    )
    also_called(flags, action, *old)


def add_force(flags: Flags, help: str = "replace existing files") -> None:
    """Add ``--force``."""
    flags.add_argument("--force", action="store_true", help=help)


def add_switch_off(flags: Flags, flag: str, help: str, *, old: str) -> None:
    """Add a ``--no-…`` flag. Its value has the flag's name."""
    also_called(flags, flags.add_argument(flag, action="store_true", help=help), old)


def add_json(flags: Flags, help: str = "print JSON") -> None:
    """Add ``--json``: print JSON, and nothing else, on standard output. See `results_alone`."""
    flags.add_argument("--json", action="store_true", help=help)


def add_json_or_file(flags: Flags) -> None:
    """Add ``--json`` as in `add_json`, and ``--json FILE``, which writes the figures to a file."""
    flags.add_argument(
        "--json",
        nargs="?",
        const="",
        metavar="FILE",
        help="print JSON instead of tables; with FILE, write JSON there and print tables",
    )


def is_bare_json(args: argparse.Namespace) -> bool:
    """Whether the flag of `add_json_or_file` was given without FILE."""
    return args.json is not None and not args.json


@contextmanager
def results_alone(wanted: object) -> Iterator[TextIO]:
    """Yield standard output. If wanted, everything else printed inside the ``with`` block goes to standard error."""
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
    """Add ``--imgsz`` with all of its names in YOLOv5. If ``sides`` is not 1, the value is a list of numbers."""
    names = ("--imgsz", "--img", "--img-size")
    if sides == 1:
        flags.add_argument(*names, type=int, default=default, metavar="N", help=help)
    else:
        flags.add_argument(*names, type=int, default=[default], nargs="+", metavar="N", help=help)


def check_image_size(imgsz: int | None, least: int = 1) -> None:
    """Raise a UserError unless the size is ``least`` to 100,000 pixels."""
    if imgsz is not None and not least <= imgsz <= 100_000:
        raise UserError(f"--imgsz {imgsz}: must be the side of an image in pixels, such as 640")


def add_device(
    flags: Flags,
    help: str = "cpu, or the number of a GPU (default: a GPU if there is one)",
    *,
    default: str | None = "",
) -> None:
    """Add ``--device``."""
    flags.add_argument("--device", default=default, help=help)


def add_runtime(flags: Flags, default: str | None) -> None:
    """Add ``--runtime``; without a default, torch runs a checkpoint."""
    flags.add_argument(
        "--runtime",
        default=default,
        choices=(AUTO, *RUNTIMES),
        help="what runs a checkpoint's model. onnx, openvino, tensorrt: an export of it to ONNX, made once and kept in "
        "the user's cache folder; it is compared with torch. auto: the fastest that is installed and agrees with "
        f"torch, measured once; below {WORTH_EXPORTING} images ({FEWEST_IMAGES} if the export is there already) it is "
        f"torch (default: {default or TORCH})",
    )
    flags.add_argument(
        "--int8",
        action="store_true",
        help="quantize the convolutions to eight bits, with ranges measured on the first images; needs --runtime onnx "
        "or openvino on a CPU. evaluate says what it costs in AP",
    )


def add_thresholds(flags: Flags) -> None:
    """Add the thresholds that decide which detections are kept, as in YOLOv5's detect."""
    flags.add_argument("--conf-thres", type=float, default=0.25, metavar="X", help="minimum confidence (default: 0.25)")
    flags.add_argument(
        "--iou-thres", type=float, default=0.45, metavar="X", help="IoU threshold of NMS (default: 0.45)"
    )
    flags.add_argument(
        "--max-det", type=int, default=1000, metavar="N", help="most detections per image (default: 1000)"
    )


def check_shares(args: argparse.Namespace, *names: str) -> None:
    """Raise a UserError unless the values of these flags are 0 to 1."""
    for name in names:
        if not 0 <= getattr(args, name) <= 1:
            raise UserError(f"--{name.replace('_', '-')} must be 0 to 1, not {getattr(args, name)}")


def check_at_least_one(args: argparse.Namespace, *names: str) -> None:
    """Raise a UserError if one of these flags was given and is less than 1."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {value}")


def add_run_folder(flags: Flags, project: str) -> None:
    """Add the flags that say where the run folder is created, as in YOLOv5."""
    flags.add_argument(
        "--project",
        type=Path,
        default=Path(project),
        metavar="DIR",
        help=f"folder that holds the run folder (default: {project})",
    )
    flags.add_argument(
        "--name", default="exp", help="name of the run folder (default: exp, or exp2, exp3 … if it exists)"
    )
    flags.add_argument("--exist-ok", action="store_true", help="use the run folder even if it exists")
