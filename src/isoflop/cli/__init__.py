"""The command line: each verb parses, calls one function and prints; nothing heavy is imported before it is needed."""

from isoflop.cli.app import app, main

__all__ = ["app", "main"]
