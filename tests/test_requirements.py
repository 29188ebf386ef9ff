"""The lock: every package is pinned by its hashes, none has its own index, and the audit succeeds without a network."""

import os
import re
import subprocess

from helpers import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def requirements(lock):
    """The entries of a lock, each with the lines that belong to it."""
    return re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", lock, flags=re.MULTILINE)


def test_every_locked_requirement_is_pinned_and_hashed():
    entries = requirements(LOCK)
    assert len(entries) > 100
    loose = [
        e.splitlines()[0] for e in entries if not re.match(r"[\w.-]+(\[[\w,]+\])?==\S+", e) or "--hash=sha256:" not in e
    ]
    assert loose == []
    assert requirements("a==1 \\\n    --hash=sha256:0\n    # via x\nb>=2\n") == [
        "a==1 \\\n    --hash=sha256:0\n    # via x",
        "b>=2",
    ]


def test_the_lock_names_no_place_that_packages_come_from():
    for name in ("requirements.lock", "requirements.in", "requirements.override"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|file:|git\+|--(extra-)?index-url|--find-links|--trusted-host| @ ", text), name


def test_every_requirement_is_locked():
    names = {re.split(r"[=<>\[ ]", line)[0] for line in (ROOT / "requirements.in").read_text().splitlines()
             if line and not line.startswith("#")}  # fmt: skip
    locked = {re.split(r"[=\[]", entry)[0] for entry in requirements(LOCK)}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in names} <= locked


def test_an_audit_without_a_network_prints_that_and_succeeds():
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run([ROOT / ".ci/audit"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("audit skipped: pip-audit cannot be")
