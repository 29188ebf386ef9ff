"""Shared fixtures. Nothing in the tests reaches a hub."""

import gc
import os
import signal
from pathlib import Path

import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
# After each command in a project of a test DVC would start a process that reports it.
os.environ["DVC_NO_ANALYTICS"] = "1"
# Before torch is imported: two threads in each of two test processes would wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"

# A shell starts background jobs with Ctrl-C ignored, which every process below would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# One compiler: a pool of processes would import torch in each before anything is compiled.
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

# The test files import a million objects, which the collector would go through while they grow and in every test.
gc.disable()

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = [
    "I lost my dog.",
    "I am sorry!",
    "I am so happy for you.",
    "Thank you.",
    "How old was she?",
    "She was ten years old and she was my best friend.",
]


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="keep what the campaigns count in docs/reliability/")


def pytest_collection_modifyitems(config, items):
    # The longest files first: a file that starts last would keep one process busy while the other is idle.
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if not config.getoption("--record"):
        for item in items:
            if item.get_closest_marker("campaign"):
                item.add_marker(pytest.mark.skip(reason="a campaign of full size: --record runs and keeps it"))


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture
def recorded(request):
    """`recorded(name, rows)`: keep a campaign's rows, {what, cases, failures, …}, where --record asks for it.

    Rows that several tests of a file give to one campaign stand together, those of another commit are replaced.
    """

    def keep(name, rows):
        if request.config.getoption("--record"):
            import reliability

            reliability.keep(name, f"python -m pytest {request.node.nodeid.partition('::')[0]} --record", rows)

    return keep


@pytest.fixture(scope="session")
def micro(tmp_path_factory, worker_id):
    """The very small pipeline as it ran once in this session; tests that change anything do so in a copy."""
    from micro import shared

    own = tmp_path_factory.getbasetemp()
    return shared(own if worker_id == "master" else own.parent)


@pytest.fixture(scope="session")
def corpora_dir():
    """The folder of real corpora, laid out as <corpus>/<file>."""
    folder = Path(os.environ.get("CORPORA_DIR") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real corpora in {folder}: set CORPORA_DIR to a folder laid out as <corpus>/<file>")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """The tiny model's tokenizer, trained on a few sentences."""
    from attune.models.tiny import train_tokenizer

    return train_tokenizer(SENTENCES * 3, vocab_size=400, max_positions=512)
