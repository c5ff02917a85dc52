"""The command line: one file for each command, which reads flags, calls the rooms below and prints."""
