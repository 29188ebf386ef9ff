"""The recipes from the first stage to the last with very small models, on the embedded samples."""

import csv
import json
import runpy
import shutil
import sys
from itertools import product
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from dvc.repo import Repo
from helpers import ROOT, project

from attune.classifiers.dbt.classifier import LABELS
from attune.config.params import compose
from attune.data.dialogue import normalise, read_dialogues
from attune.tools.pipeline import stages_in_order

pytestmark = pytest.mark.slow

MICRO = [
    "tiny.corpus=sample", "tiny.vocab_size=600", "tiny.hidden_size=32", "tiny.intermediate_size=64", "tiny.layers=2",
    "tiny.heads=2", "tiny.epochs=0.2", "tiny.max_length=128", "lora.r=4", "sft.max_length=256", "sft.batch_size=16",
    "pairs.limit=12", "dpo.batch_size=8", "generate.limit=8", "generate.max_new_tokens=8", "generate.do_sample=true",
    "epitome.epochs=1", "epitome.max_length=16", "mmlu.corpus=sample", "mmlu.limit=2", "mmlu.shots=1",
    "evaluate.resamples=100", "compute.threads=1", "compute.dtype=fp32",
]  # fmt: skip
DBT = [*MICRO, "recipe=dbt", "corpus=esconv_sample", "dbt.epochs=1", "dbt.max_length=48", "pairs.margin=0.0",
       "pairs.max_new_tokens=8"]  # fmt: skip
COUNSEL = [*MICRO, "recipe=counsel", "corpus=annomi_sample", "behaviour.sentences=data/sample/miti_sentences",
           "epitome.data=data/sample/epitome",
           "behaviour.epochs=1", "behaviour.max_length=48", "behaviour.miti.epochs=1"]  # fmt: skip
# Sessions that are judged, whose acts are behaviours, and answers to posts, whose acts are labels of the MITI code.
MIXTURE = ["corpus=counselling", "corpus.local_dir=data/sample", "~corpus.mix.annomi", "~corpus.mix.mi_dataset",
           "+corpus.mix.annomi_sample={reader: annomi, weight: 1}",
           "+corpus.mix.posts={reader: mi, weight: 2, file: posts.csv}",
           "behaviour.data=data/raw/annomi_sample"]  # fmt: skip
# What no model of the study has a part in.
COMMON = (
    "download",
    "prepare",
    *(f"{stage}@{key}" for stage in ("classifier", "references") for key in ("epitome", "dbt")),
)
# Another scheme of labels in ESConv's format: six strategies, two of them none of the stages, and three problems.
STRATEGIES = {
    "Question": ("Open question", "listening"), "Restatement or Paraphrasing": ("Summary", "reflecting"),
    "Reflection of feelings": ("Naming a feeling", "acknowledging"), "Self-disclosure": ("Own story", "genuine"),
    "Affirmation and Reassurance": ("Own story", "genuine"), "Providing Suggestions": ("Advice", ""),
    "Information": ("Advice", ""), "Others": ("Small talk", "none"),
}  # fmt: skip
PROBLEMS = {
    "job crisis": "work", "academic pressure": "work", "breakup with partner": "people",
    "problems with friends": "people", "ongoing depression": "health",
}  # fmt: skip
ADAPTERS = ("sft", "dpo/e1", "dpo/e2", "dpo/e3", "dpo/base-e1", "dpo/base-e2", "dpo/base-e3")


def run(stages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of `stages` in this process, which spares the imports of fifty."""
    with Repo() as repo:
        commands = {stage.addressing: stage.cmd for stage in repo.index.stages}
    for stage in stages:
        _, _, module, *arguments = commands[stage].split()
        monkeypatch.setattr(sys, "argv", [module, *arguments])
        # runpy warns of a module that an earlier stage has imported.
        monkeypatch.delitem(sys.modules, module, raising=False)
        runpy.run_module(module, run_name="__main__")


def composed(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """The params of a run whose classifiers are trained on a very small encoder."""
    monkeypatch.syspath_prepend(str(folder))
    compose([*overrides, "encoder=tiny"])


def with_samples(folder: Path) -> None:
    """A project with the samples and the tables, as a user's has them."""
    project(folder)
    for name in ("sample", "prompts"):
        shutil.copytree(ROOT / "data" / name, folder / "data" / name)
    for pattern in ("*.csv", "*.yaml"):
        for table in (ROOT / "data").glob(pattern):
            shutil.copy(table, folder / "data")


def read(path: str) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def assert_every_adapter_is_another(names: tuple[str, ...]) -> None:
    weights = {(Path("models") / name / "adapter_model.safetensors").read_bytes() for name in names}
    assert len(weights) == len(names)


@pytest.fixture(scope="module")
def common(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dbt")
    with_samples(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        composed(folder, patch, *DBT, "model=tiny")
        run(list(COMMON), patch)
    return folder


# The run on another corpus has the architecture of `tiny`.
@pytest.mark.parametrize("model", ["tiny-mistral", "tiny-gemma"])
def test_recipe_dbt_runs_to_its_table_with_every_architecture(model, common, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(common, folder)
    monkeypatch.chdir(folder)
    composed(folder, monkeypatch, *DBT, f"model={model}")
    run([stage for stage in stages_in_order() if stage not in COMMON], monkeypatch)
    assert read("models/base/config.json")["model_type"] == model.removeprefix("tiny-")
    for variant in ("base", "sft", "dpo", "sft-dpo"):
        for name in (f"text/{variant}", f"dbt/{variant}", f"intervals/dbt/{variant}", f"mmlu/{variant}"):
            assert read(f"metrics/{name}.json")
    assert_every_adapter_is_another(ADAPTERS)
    assert "sft-dpo" in Path("reports/summary.md").read_text(encoding="utf-8")


def relabelled(line: str) -> str:
    """A conversation of the sample under the other scheme of labels."""
    record = json.loads(line)
    turns = [
        turn | {"strategy": STRATEGIES[turn["strategy"]][0]} if "strategy" in turn else turn
        for turn in record["dialog"]
    ]
    return json.dumps(record | {"problem_type": PROBLEMS[record["problem_type"]], "dialog": turns})


def with_other_labels(folder: Path) -> None:
    """The corpus `peers` in `folder/corpora`, and its table of stages."""
    (folder / "corpora/peers").mkdir(parents=True)
    for file in (ROOT / "data/sample/esconv_sample").glob("*.txt"):
        lines = map(relabelled, file.read_text(encoding="utf-8").splitlines())
        (folder / "corpora/peers" / file.name).write_text("\n".join(lines), encoding="utf-8")
    rows = [f"{strategy},{stage},the corpus's label" for strategy, stage in sorted(set(STRATEGIES.values()))]
    (folder / "data/peers_stages.csv").write_text("\n".join(["strategy,stage,source", *rows]), encoding="utf-8")


def test_recipe_dbt_runs_on_another_corpus_with_other_labels_by_config_alone(tmp_path, monkeypatch):
    with_samples(tmp_path)
    with_other_labels(tmp_path)
    # Nothing may fall back on ESConv's own labels.
    (tmp_path / "data/dbt_stages.csv").unlink()
    shutil.rmtree(tmp_path / "data/sample/esconv_sample")
    monkeypatch.chdir(tmp_path)
    other = ["corpus.name=peers", "corpus.local_dir=corpora", "dbt.table=data/peers_stages.csv"]
    composed(tmp_path, monkeypatch, *DBT, "model=tiny", *other)
    run(stages_in_order(), monkeypatch)
    labels = {name.removeprefix("train_label_") for name in read("metrics/labels.json")}
    assert labels == set(PROBLEMS.values())
    assert {turn.act for one in read_dialogues(Path("data/dialogues/train.parquet")) for turn in one.turns} == {
        None, *(strategy for strategy, _ in STRATEGIES.values())
    }  # fmt: skip
    for key, source in {"e1": "corpus", "e3": "policy", "base-e1": "corpus", "base-e3": "policy"}.items():
        pairs = pq.read_table(f"data/pairs/{key}.parquet").to_pylist()
        assert {pair["source"] for pair in pairs} == {source} and {pair["label"] for pair in pairs} <= labels
    scorer = read("metrics/classifiers/dbt.json")
    assert {f"f1_{label}" for label in LABELS} <= scorer.keys()
    for variant in ("base", "sft", "dpo", "sft-dpo"):
        assert {"dbt_gap", "dbt_diff", "dbt_adherence"} <= read(f"metrics/dbt/{variant}.json").keys()
    assert_every_adapter_is_another(ADAPTERS)
    assert "sft-dpo" in Path("reports/summary.md").read_text(encoding="utf-8")


def put_posts(folder: Path) -> None:
    """Posts, each with an answer that adheres to motivational interviewing and one that does not."""
    folder.mkdir()
    answers = (("That takes courage.", "Affirm"), ("You must stop at once.", "Direct"))
    with (folder / "posts.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["dialog_id", "turn", "author", "text", "final agreed label"])
        for i, (text, act) in product(range(60), answers):
            writer.writerow([f"forum | {i} {act}", 1, "speaker", f"My name is Zoe, it is week {i} of drinking.", ""])
            writer.writerow([f"forum | {i} {act}", 2, "listener", f"{text} Week {i} is hard.", act])


@pytest.mark.parametrize(("model", "corpus"), [("tiny-gemma", []), ("tiny-bert", MIXTURE)])
def test_recipe_counsel_runs_to_its_table(model, corpus, tmp_path, monkeypatch):
    with_samples(tmp_path)
    put_posts(tmp_path / "data/sample/posts")
    monkeypatch.chdir(tmp_path)
    composed(tmp_path, monkeypatch, *COUNSEL, *corpus, f"model={model}")
    run(stages_in_order(), monkeypatch)
    for variant in ("base", "prompted", "sft", "sft-high", "dpo", "sft-dpo"):
        for name in (f"text/{variant}", f"behaviour/{variant}", f"intervals/behaviour/{variant}", f"mmlu/{variant}"):
            assert read(f"metrics/{name}.json")
    assert_every_adapter_is_another((*ADAPTERS, "sft-high"))
    pairs = read("metrics/pairs/e1.json")
    matches = ("post", "topic_and_talk") if corpus else ("topic_and_talk",)
    assert all(pairs[f"match_{name}_pairs"] > 0 for name in matches)
    assert sum(pairs[name] for name in pairs if name.startswith("match_") and name.endswith("_pairs")) == pairs["pairs"]
    assert ("masked_name" in read("metrics/data.json")) is bool(corpus)
    assert {"behaviour_accuracy", "miti_accuracy"} <= read("metrics/classifiers/behaviour.json").keys()
    assert "prompted" in Path("reports/summary.md").read_text(encoding="utf-8")


def test_recipe_attune_ranks_the_models_samples(tmp_path, monkeypatch):
    with_samples(tmp_path)
    monkeypatch.chdir(tmp_path)
    composed(tmp_path, monkeypatch, *MICRO, "recipe=attune", "corpus=sample", "epitome.data=data/sample/epitome",
             "truth.corpus=sample", "model=tiny", "pairs.margin=0", "pairs.max_new_tokens=8")  # fmt: skip
    run(["download", "prepare", "base", "classifier@epitome", "pairs@base-e1"], monkeypatch)
    pairs = pq.read_table("data/pairs/base-e1.parquet").to_pylist()
    assert pairs and {pair["source"] for pair in pairs} == {"policy"}
    for pair in pairs:
        assert pair["chosen_score"] > pair["rejected_score"]
        shorter, longer = sorted(len(normalise(pair[side]).split()) for side in ("chosen", "rejected"))
        assert longer <= 1.25 * shorter
