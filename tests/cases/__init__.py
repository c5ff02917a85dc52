"""Code that tests run in another process: functions that raise an error if something is wrong, or print a result.

`fresh_process.run_fresh` and `release_case.run_in_release` call them. ``plugins/`` holds files that a command imports
or runs, ``stand_ins/`` modules that replace packages which are not installed.
"""

from pathlib import Path

PLUGINS = Path(__file__).parent / "plugins"
"""Files that tests copy to where a command imports or runs them."""
