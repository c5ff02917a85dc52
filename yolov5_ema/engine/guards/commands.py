"""``os.system`` and ``subprocess``: only commands that YOLOv5's own files spell out, filled with plain words, are run.

- A shell command must be in the text of the module that runs it, as a string or an f-string. What the f-string inserts
  may hold no character that is special to a shell.
- A command without a shell must begin with a program that the module names.
- git, which runs what a repository's settings say, is asked only about YOLOv5's own folder, never about the user's
  working directory.

So the name of a bucket, an address or a file cannot become a second command. The rules are read from each release's own
text, so new commands of a release need no list here.
"""

from __future__ import annotations

import ast
import functools
import os
import re
import reprlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from yolov5_ema.engine.quirks.base import Quirk, SourceModule, by_absence
from yolov5_ema.errors import UserError
from yolov5_ema.upstream.data_yaml import approved_download
from yolov5_ema.upstream.patching import Patches
from yolov5_ema.upstream.source_code import Code

# what may be inserted outside quotes and inside them: no character that is special to a shell
_WORD = r"[\w./:=@+,%-]*" if os.name != "nt" else r"[\w./:=@+,\\-]*"
_WITHIN = {"'": r"[^'\n\0]*", '"': r'[^"$`\\!\n\0]*' if os.name != "nt" else r'[^"%\n\0]*'}
_UNHEARD = re.compile(r"\s*>\s*/dev/null(\s+2>&1)?\s*$")
_BEGINNING = re.compile(r"[A-Za-z_][\w.-]*(?=\s|$)")
_OF_SUBPROCESS = ("run", "call", "check_call", "check_output", "Popen")
_SHELLS = ("getoutput", "getstatusoutput")


class Commands:
    """What one module of YOLOv5 may run.

    Args:
        name: the module's name, for messages.
        code: the module's syntax tree.
        root: YOLOv5's folder, the only one that git is asked about.
    """

    def __init__(self, name: str, code: Code, root: Path) -> None:
        self._name = name
        self._code = code
        self._root = root

    @functools.cached_property
    def _templates(self) -> tuple[list[re.Pattern[str]], set[str]]:
        """Regular expressions of whole commands, and the programs that they begin with."""
        patterns, programs = [], set()
        for pattern, beginning in _commands_in(self._code):
            patterns.append(re.compile(pattern))
            programs.add(beginning)
        return patterns, programs

    def check(self, command: Any, shell: bool) -> None:
        """Refuse a command that the module does not spell out.

        Raises:
            UserError: the command is not in the module's text.
            CalledProcessError: the same for a git command; YOLOv5 asks git only about its own version, and expects
                that this can fail.
        """
        if approved_download(command) or (self._allows_text(command) if shell else self._allows_list(command)):
            return
        shown = reprlib.repr(command)
        if _is_git(command):
            raise subprocess.CalledProcessError(126, "git", output=b"")
        raise UserError(
            f"YOLOv5's {self._name} would run a command with more in it than plain names: {shown}. It was not run. "
            "Give the file, bucket or address in it a name without spaces and without special characters of a shell."
        )

    def _allows_text(self, command: Any) -> bool:
        if not isinstance(command, str):
            return isinstance(command, (list, tuple)) and self._allows_list(command)
        patterns, _ = self._templates
        plain = _UNHEARD.sub("", command)
        return any(pattern.fullmatch(text) for text in (command, plain) for pattern in patterns)

    def _allows_list(self, command: Any) -> bool:
        words = [command] if isinstance(command, (str, bytes, os.PathLike)) else list(command)
        return bool(words) and (os.fspath(words[0]) in self._templates[1] or os.fspath(words[0]) == sys.executable)

    def _refuse_foreign_repository(self, takes_folder: bool) -> None:
        """Allow git only in YOLOv5's own folder: git runs what a repository's settings say.

        Raises:
            CalledProcessError: YOLOv5's own folder is not a repository.
        """
        if not takes_folder or not (self._root / ".git").exists():
            raise subprocess.CalledProcessError(128, "git", output=b"")

    def wrapped(self, run: Callable[..., Any], *, shell: bool) -> Callable[..., Any]:
        """Wrap ``run`` so that `check` sees each command first; ``shell``: whether ``run`` always uses a shell."""

        @functools.wraps(run)
        def guarded(command: Any, *args: Any, **kwargs: Any) -> Any:
            self.check(command, shell or bool(kwargs.get("shell")))
            if _is_git(command):
                self._refuse_foreign_repository(takes_folder=not shell)
                kwargs["cwd"] = self._root
            return run(command, *args, **kwargs)

        return guarded


def _is_git(command: Any) -> bool:
    words = command if isinstance(command, (list, tuple)) else str(command).split(maxsplit=1)
    return bool(words) and words[0] == "git"


def _commands_in(code: Code) -> Iterator[tuple[str, str]]:
    """For each string of a module that may be a command: a pattern of what it can become, and its first word."""
    joined: list[list[Any]] = [
        [part.value if isinstance(part, ast.Constant) else None for part in node.values]
        for node in code.all(ast.JoinedStr)
    ]
    for parts in (*joined, *([text] for text in sorted(code.texts))):
        beginning = _BEGINNING.match(parts[0]) if parts and isinstance(parts[0], str) else None
        if beginning:
            yield _pattern(parts), beginning[0]


def _pattern(parts: list[Any]) -> str:
    """The regular expression for the parts of an f-string, where None is an inserted value."""
    found, quote = "", ""
    for part in parts:
        if part is None:
            found += _WITHIN.get(quote, _WORD)
            continue
        for sign in part:
            if sign in _WITHIN and quote in ("", sign):
                quote = "" if quote else sign
        found += re.escape(part)
    return found


def _needed(module: SourceModule) -> bool:
    running = {"os.system", "os.popen", "subprocess", "check_output"}
    return not running.isdisjoint(module.code.names | module.code.own_names)


def _apply(module: SourceModule, patches: Patches) -> None:
    commands, theirs = Commands(module.name, module.code, module.engine.root), module.module
    if hasattr(theirs, "os"):
        patches.view(
            theirs,
            "os",
            system=commands.wrapped(os.system, shell=True),
            popen=commands.wrapped(os.popen, shell=True),
        )
    if hasattr(theirs, "subprocess"):
        always = {name: commands.wrapped(getattr(subprocess, name), shell=True) for name in _SHELLS}
        asked = {name: commands.wrapped(getattr(subprocess, name), shell=False) for name in _OF_SUBPROCESS}
        patches.view(theirs, "subprocess", **always, **asked)
    if "check_output" in vars(theirs):
        patches.set(theirs, "check_output", commands.wrapped(theirs.check_output, shell=False))


COMMANDS = Quirk(
    name="commands",
    symptom="a bucket called 'x; command #' in opt.yaml or a checkpoint becomes a command of its own",
    versions="all",
    needed=_needed,
    reason="it runs commands that contain names from files",
    settled=by_absence,
    apply=_apply,
)
