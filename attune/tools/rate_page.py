"""The page of `attune rate`: it loads nothing from other hosts, and inserts replies as text nodes only."""

from __future__ import annotations

from attune.report.render import render, script

SCRIPT, SCRIPT_HASH = script("rate.js")
POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    f"frame-ancestors 'none'; script-src {SCRIPT_HASH}"
)
"""Sent as a header: `frame-ancestors` has no effect in a meta element."""
PAGE = render("rate.html", title="Which reply is better?", policy=None, script=SCRIPT)
