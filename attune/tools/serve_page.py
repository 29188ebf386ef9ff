"""The page of `attune serve`: a conversation, with a notice that stays; texts are inserted as text nodes only."""

from __future__ import annotations

from attune.report.render import render, script

SCRIPT, SCRIPT_HASH = script("chat.js")
POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'none'; script-src {SCRIPT_HASH}"
)
"""Sent as a header: `frame-ancestors` has no effect in a meta element."""


def page(model: str, locked: bool) -> str:
    """The page as HTML.

    Args:
        model: its name.
        locked: whether the endpoint asks for a key.
    """
    return render("chat.html", title=f"Talk to {model}", policy=None, script=SCRIPT, model=model, locked=locked)
