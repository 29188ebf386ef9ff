"""What is imported for good is out of the garbage collector's way, and nothing else is."""

import os
import subprocess
import sys

from helpers import ROOT

# In another process: what is frozen stays so.
CODE = """
import gc
from attune.runtime.imports import import_for_good

class Cycle:
    alive = 0
    def __init__(self):
        self.own = self
        Cycle.alive += 1
    def __del__(self):
        Cycle.alive -= 1

import_for_good("xml.dom.minidom")
assert gc.isenabled() and gc.get_freeze_count() > 0
# A run calls it again with its models loaded, which are freed later.
kept = Cycle()
import_for_good("xml.dom.minidom")
del kept
gc.collect()
assert Cycle.alive == 0
try:
    import_for_good("no_such_module")
except ImportError:
    assert gc.isenabled()
gc.disable()
import_for_good("json.tool")
assert not gc.isenabled()
"""


def test_what_is_imported_is_frozen_once_and_the_collector_is_as_before():
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
