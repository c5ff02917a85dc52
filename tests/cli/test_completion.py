"""``yolov5-ema completion``, in the shells that are installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from yolov5_ema.cli.main import main
from yolov5_ema.errors import EngineNotFoundError

SHELL = """
source {script}
complete -p yolov5-ema
try() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
    "$(complete -p yolov5-ema | sed 's/.*-F \\([^ ]*\\).*/\\1/')"
    echo "$* -> ${{COMPREPLY[*]}}"
}}
{lines}
"""


def printed(shell: str, capfd: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capfd.readouterr().out


@pytest.fixture
def bash(capfd, own_folder):
    """What a real bash suggests for some lines, each up to the cursor."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    script = own_folder / "completion.bash"

    def offered(*lines: str) -> dict[str, set[str]]:
        script.write_text(printed("bash", capfd))
        code = SHELL.format(script=script, lines="\n".join(f"try {line}" for line in lines))
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and not done.stderr, done.stderr
        pairs = [line.split(" -> ") for line in done.stdout.splitlines()[1:]]
        return {line: set(words.split()) for line, words in pairs}

    return offered


def test_bash_completes_commands_flags_and_values(bash):
    wanted = {
        "yolov5-ema ev": {"evaluate"},
        "yolov5-ema evaluate --pro": {"--protocol", "--project"},
        "yolov5-ema evaluate --protocol vis": {"visdrone"},
        "yolov5-ema evaluate --weights a.pt b.pt --by": {"--by-size"},
        "yolov5-ema evaluate --conf-": {"--conf-thres"},  # a flag of YOLOv5's val
        "yolov5-ema train --epo": {"--epochs"},
        "yolov5-ema train --ini": {"--init"},
        "yolov5-ema val --sli": {"--slice"},
        "yolov5-ema val --verb": {"--verbose"},
        "yolov5-ema detect --save-cr": {"--save-crop"},
        "yolov5-ema export --incl": {"--include"},
        "yolov5-ema info --verb": {"--verbose"},
        "yolov5-ema data st": {"stats"},
        "yolov5-ema data stats --img": {"--img", "--imgsz", "--img-size"},
        "yolov5-ema paper figure1 --only": {"--only-runs"},
        "yolov5-ema classify train --weight-a": {"--weight-averaging"},
        "yolov5-ema predict --out": {"--output"},
        "yolov5-ema completion f": {"fish"},
        "yolov5-ema --pl": {"--plugin"},
        "yolov5-ema nothing-such": set(),
    }
    assert bash(*wanted) == wanted


def test_without_a_yolov5_its_flags_are_left_out(own_folder, monkeypatch, capfd):
    def none(*_):
        raise EngineNotFoundError("no YOLOv5 found")

    monkeypatch.setattr("yolov5_ema.cli.completion.locate", none)
    assert main(["completion", "bash"]) == 0
    out, err = capfd.readouterr()
    assert "the flags of YOLOv5's own scripts are left out: no YOLOv5 found" in err
    assert "--epochs" in out and "--noautoanchor" not in out and "--init" in out


def test_a_script_whose_text_does_not_give_its_flags_is_imported(own_folder, monkeypatch, capfd):
    monkeypatch.setattr("yolov5_ema.cli.completion.parser_in_text", lambda *_: None)
    assert "--noautoanchor" in printed("bash", capfd)


@pytest.mark.parametrize("shell, check", [("zsh", "-n"), ("fish", "--no-execute")])
def test_scripts_for_other_shells(shell, check, own_folder, capfd):
    script = Path(f"completion.{shell}")
    script.write_text(printed(shell, capfd))
    assert "noautoanchor" in script.read_text() and "weight-averaging" in script.read_text()
    if shutil.which(shell) is not None:
        subprocess.run([shell, check, str(script)], check=True, timeout=60)


def test_another_shell_is_refused(capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["completion", "ksh"])
    assert stopped.value.code == 2 and "invalid choice: 'ksh'" in capfd.readouterr().err
