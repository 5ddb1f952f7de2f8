"""The command line: one file for each group of verbs; each verb parses, calls one function and renders. No rules live here."""

from mmedge.cli.main import app, main

__all__ = ["app", "main"]
