"""The command line. Each verb parses, calls one function and prints; heavy modules are imported late."""

from isoflop.cli.app import app, main

__all__ = ["app", "main"]
