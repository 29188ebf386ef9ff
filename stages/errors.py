"""Errors for people: what was wrong, where, and what to do, without a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from stages.tables import visible


class UserError(Exception):
    """Something that the person who runs the pipeline can mend; the message says what, where and how."""


@contextmanager
def reported() -> Iterator[None]:
    """Print a `UserError` as its message alone and exit with 1; another exception is a bug and keeps its traceback."""
    try:
        yield
    except UserError as error:
        # A message may quote a hostile file.
        print("error: " + "\n".join(map(visible, str(error).split("\n"))), file=sys.stderr)
        sys.exit(1)
