"""Runs the command line: `python -m isoflop` is `isoflop`."""

from isoflop.cli import main

main()
