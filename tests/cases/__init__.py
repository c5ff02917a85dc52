"""What tests run in a process of its own: functions that raise, or print what was seen.

`fresh_process.run_fresh` and `release_case.run_in_release` call them by name; ``plugins/`` holds files that a command
imports. A file is called like the test file that uses it.
"""
