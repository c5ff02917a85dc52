"""Data sets: formats, converters, statistics, windows; the same reading for every command."""
