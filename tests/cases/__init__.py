"""What tests run in a process of its own: functions that raise, or print what was seen.

`fresh_process.run_fresh` and `release_case.run_in_release` call them by name. ``plugins/`` holds files that a command
imports, ``stand_ins/`` packages that take the place of one that is not installed.
"""

from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"
"""Files that tests copy to where a command imports or runs them."""
