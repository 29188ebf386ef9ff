"""Every command and every stage prints its help and refuses unknown arguments before it imports or writes anything."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT

from attune.__main__ import COMMANDS

STAGES = sorted(path.stem for path in (ROOT / "stages").glob("*.py") if path.stem != "__init__")
LINES = {f"attune {name}": ["attune", name] for name in COMMANDS} | {name: [f"stages.{name}"] for name in STAGES}
# Runs every command line in one process, in which the heavy libraries cannot be imported.
RUN = """
import contextlib, io, json, runpy, sys

HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "pandas", "pyarrow", "altair", "dvc"}

class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in HEAVY:
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Forbid())
results = []
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as end:
            status = end.code or 0
        except BaseException as error:
            status = repr(error)
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def run(lines, folder):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(lines)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """Each command line with its status, stdout and stderr for `--help` and for an unknown option."""
    folder = tmp_path_factory.mktemp("empty")
    results = run([[*line, word] for line in LINES.values() for word in ("--help", "--unknown-option")], folder)
    return dict(zip(LINES, zip(results[::2], results[1::2], strict=True), strict=True))


@pytest.mark.parametrize("name", LINES)
def test_help_starts_no_work(name, printed):
    status, out, err = printed[name][0]
    assert (status, err) == (0, "")
    assert out.startswith(f"usage: python -m {' '.join(LINES[name])} [-h]") and len(out.splitlines()) > 4


@pytest.mark.parametrize("name", LINES)
def test_an_unknown_argument_is_refused(name, printed):
    status, out, err = printed[name][1]
    assert (status, out) == (2, "")
    assert re.search(r"error: (unrecognized arguments: --unknown-option|the following arguments are required: )", err)


def test_the_help_page_lists_every_command(tmp_path):
    alone, asked, unknown = run([["attune"], ["attune", "--help"], ["attune", "nothing"]], tmp_path)
    assert alone == asked and alone[0] == 0
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"^    {name} +{re.escape(line)}$", alone[1], re.MULTILINE)
    assert unknown[:2] == [2, ""] and "invalid choice: 'nothing'" in unknown[2]


def test_every_tool_is_a_command():
    paths = [path for path in (ROOT / "attune/tools").rglob("*.py") if "\ndef main(" in path.read_text()]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    assert modules == {module for module, _ in COMMANDS.values()}
    assert not [path for path in Path(ROOT / "attune/tools").rglob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_left_is_no_error(unbuffered):
    read, write = os.pipe()
    os.close(read)
    code = "from attune.runtime.errors import reported\nwith reported():\n    print('line')"
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(write, "wb") as output:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=output, stderr=subprocess.PIPE, text=True, env=environment
        )
    assert (ended.returncode, ended.stderr) == (128 + signal.SIGPIPE, "")
