"""Imports of packages that make so many objects that the garbage collector takes as long as the imports themselves."""

from __future__ import annotations

import atexit
import gc
import sys
from importlib import import_module


def import_transformers() -> None:
    """Import what every model of transformers needs, torch among it, as `import_for_good` does.

    To be called before the first of them is imported: what was imported before is imported slowly.
    """
    import_for_good("transformers.modeling_utils")


def import_for_good(*names: str) -> None:
    """Import modules while the garbage collector is off, and have it pass over everything there is from then on.

    Classes and functions live as long as the process. The collector would go through all of them whenever their number
    has grown by a quarter, again in every full collection of a training, and at the end of the process: 2.3 of the
    5.5 s of a process that imports transformers' BERT and does nothing (docs/performance.md). Where the modules are
    imported already, nothing happens: objects of a run that are kept by mistake would never be freed.
    """
    if all(name in sys.modules for name in names):
        return
    enabled = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            import_module(name)
        gc.freeze()
    finally:
        if enabled:
            gc.enable()
    # Again at the end, for what was imported since.
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
