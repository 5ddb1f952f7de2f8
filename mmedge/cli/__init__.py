"""The command line: one file for each group of verbs; each verb parses, calls one function and renders. No rules live here."""

import sys

try:
    from mmedge.cli.main import app, main
except KeyboardInterrupt:  # before anything has begun
    sys.exit(130)

__all__ = ["app", "main"]
