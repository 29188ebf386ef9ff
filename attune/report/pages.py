"""What pages in a browser share."""

from __future__ import annotations

import base64
import hashlib


def hashed(script: str) -> str:
    """A script's name in a content security policy: a page that names it runs this script and no other."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
