"""Published levels as a second training corpus of EPITOME."""

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from attune.classifiers import epitome
from attune.classifiers.common.quality import kappa
from attune.classifiers.epitome import training
from attune.classifiers.epitome.agreement import ALL, agreement, differences, summary
from attune.classifiers.epitome.annotations import FILES, encode, read_annotations, split_of
from attune.classifiers.epitome.learn import corpus, learn, make_models, train_and_measure
from attune.classifiers.epitome.model import MECHANISMS, Classifiers
from attune.classifiers.epitome.published_levels import PEOPLE, Levelled, read_levels
from attune.config.params import check
from attune.models.encoder import made
from attune.runtime.errors import DataError
from attune.runtime.io import sha256_of
from stages.download import needed

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data/sample/epitome"
HARDWARE = factory.hardware()
SETTINGS = factory.epitome(epochs=1, max_length=24)
SHORTS = ("er", "ip", "ex")


def digest(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(value.equal(other[name]) for name, value in one.items()) and one.keys() == other.keys()


def annotated(limit=24):
    return {mechanism: read_annotations(SAMPLE / file)[:limit] for mechanism, file in FILES.items()}


# Published levels


HEADER = ("emotion", "context", "reference", "reply", *(f"reference_level_{short}" for short in SHORTS))
OWN = tuple(f"level_{short}" for short in SHORTS)


def put(folder, name, dialogues=30, own=True, shift=0, change=lambda row: row):
    """The file of a system; levels of a reply depend on its number, `change` is applied to each row."""
    folder.mkdir(parents=True, exist_ok=True)
    header = (*HEADER, *(OWN if own else ()))
    with (folder / f"replies-{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        for i in range(dialogues):
            messages = [{"role": "user", "content": f"I lost number {i}."}]
            row = {
                "emotion": "sad",
                "context": json.dumps(messages),
                "reference": f"Oh no, {i}!",
                "reply": f"{name} {i}?",
            }
            row |= {f"reference_level_{short}": i % 3 for short in SHORTS}
            row |= {key: (i + shift) % 3 for key in OWN if own}
            writer.writerow(change(row))


@pytest.fixture
def folder(tmp_path):
    """Three systems' replies to 30 dialogues, the levels of one of them withheld."""
    for name, own in (("base", True), ("sft", True), ("sft-dpo", False)):
        put(tmp_path / "levels", name, own=own, shift=len(name))
    return tmp_path / "levels"


def test_replies_with_levels_and_the_human_ones_once(folder):
    rows = read_levels(folder)
    assert Counter(row.system for row in rows) == {"base": 30, "sft": 30, PEOPLE: 30}
    one = next(row for row in rows if row.system == "base" and row.response_post == "base 4?")
    assert one.seeker_post == "I lost number 4." and one.levels == dict.fromkeys(MECHANISMS, (4 + 4) % 3)
    human = next(row for row in rows if row.response_post == "Oh no, 4!")
    assert human.dialogue == one.dialogue and human.levels == dict.fromkeys(MECHANISMS, 1)


def test_a_dialogue_has_one_split_whichever_system_replies(folder):
    splits = {}
    for row in read_levels(folder):
        splits.setdefault(row.dialogue, set()).add(row.split)
    assert {len(found) for found in splits.values()} == {1} and set().union(*splits.values()) >= {"train", "test"}


def test_no_held_out_dialogue_is_learnt_from(folder):
    rows = read_levels(folder)
    learnt = corpus(annotated(), rows)
    held_out = {(row.seeker_post, row.response_post) for row in rows if row.split != "train"}
    for mechanism, annotations in learnt.items():
        texts = [(row.seeker_post, row.response_post) for row in annotations]
        assert not held_out & set(texts)
        reddit = sum(split_of(row.seeker_post) == "train" for row in annotated()[mechanism])
        assert len(texts) == reddit + sum(row.split == "train" for row in rows)


def untrained():
    encoder, tokenizer = made()
    return Classifiers(make_models(encoder, SETTINGS, 5), tokenizer, SETTINGS.max_length)


def test_levels_of_held_out_dialogues_move_no_weight(folder, tmp_path):
    """And those of the others do."""

    def weights(rows, name):
        torch.manual_seed(1)
        classifiers = untrained()
        metrics, _ = train_and_measure(classifiers, annotated(), rows, SETTINGS, HARDWARE, 5, tmp_path / name)
        models = classifiers.models.items()
        return metrics, {f"{of}.{key}": value for of, model in models for key, value in digest(model).items()}

    def other(rows, splits):
        turned = dict.fromkeys(MECHANISMS, 2)
        return [replace(row, levels=turned) if row.split in splits else row for row in rows]

    rows = read_levels(folder)
    metrics, first = weights(rows, "a")
    changed, again = weights(other(rows, {"test", "valid"}), "b")
    assert same(first, again) and metrics != changed
    assert not same(first, weights(other(rows, {"train"}), "c")[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row | {"level_ip": 3}, r"base\.csv:2, column level_ip: '3' is none of 0, 1, 2"),
        (lambda row: row | {"reference_level_ex": "x"}, r"base\.csv:2, column reference_level_ex: 'x' is none of"),
        (lambda row: row | {"reply": " "}, r"base\.csv:2, column reply: empty"),
        (lambda row: row | {"context": "{'role'"}, r"base\.csv:2, column context: no valid JSON"),
        (lambda row: row | {"context": "[]"}, r"base\.csv:2, column context: expected a list of chat messages"),
        (lambda row: row | {"context": '[{"role": "x"}]'}, r"base\.csv:2, column context: role 'x' is none of"),
    ],
)
def test_a_malformed_file_is_one_error_with_place_and_remedy(tmp_path, change, message):
    put(tmp_path, "base", 1, change=change)
    with pytest.raises(DataError, match=message) as raised:
        read_levels(tmp_path)
    assert str(raised.value).endswith("or set epitome.levels to epitome.data (none)")


def test_missing_columns_and_files(tmp_path):
    (tmp_path / "replies-a.csv").write_text("context,reply,level_er\n[],x,0\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.csv:1: no rows, or no column reference, .*reference_level_ex, level_ip"):
        read_levels(tmp_path)
    with pytest.raises(DataError, match=r"none holds no replies-<system>\.csv: put the published files"):
        read_levels(tmp_path / "none")


def test_other_levels_of_the_same_human_reply(folder):
    put(folder, "tuned", change=lambda row: row | ({"reference_level_er": 2} if "number 0." in row["context"] else {}))
    with pytest.raises(DataError, match=r"tuned\.csv:2, columns reference_level_er, .* than in .*base\.csv:2"):
        read_levels(folder)


def test_a_missing_corpus_is_an_error_before_anything_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # An encoder that is not installed would be the next error.
    params = factory.params(
        epitome=replace(SETTINGS, levels=str(tmp_path)), encoder=factory.encoder(source="package", package="no_such")
    )
    with pytest.raises(DataError, match=r"holds no replies-<system>\.csv"):
        learn(params, tmp_path / "checkpoints", tmp_path / "out")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.corpora
def test_the_published_corpus(corpora_dir):
    if not (corpora_dir / "empo_human").is_dir():
        pytest.skip(f"no empo_human in {corpora_dir}")
    rows = read_levels(corpora_dir / "empo_human")
    assert Counter(row.system for row in rows) == dict.fromkeys(("base", "base-30", "sft", PEOPLE), 2540)
    dialogues = {row.dialogue: row.split for row in rows}
    assert len(dialogues) == 2540 and 0.18 < Counter(dialogues.values())["test"] / 2540 < 0.22
    # The differences that EmPO publishes of its base model, by the published levels alone.
    found = differences(rows, {mechanism: [row.levels[mechanism] for row in rows] for mechanism in MECHANISMS})["base"]
    assert [round(found[f"diff_{short}"], 3) for short in ("er", "ex", "ip")] == [1.120, 1.441, 0.603]


# Agreement


def test_kappa():
    assert kappa([0, 1, 2, 0], [0, 1, 2, 0]) == 1
    assert kappa([0, 1, 2, 0], [1, 1, 1, 1]) == kappa([1, 1], [1, 1]) == kappa([], []) == 0
    # 2 of 4 are equal, by chance 3/4 1/2 + 1/4 1/2 = 1/2 would be.
    assert kappa([0, 0, 0, 1], [0, 1, 1, 0]) == pytest.approx((1 / 4 - 1 / 2) / (1 / 2))


def levelled(system, dialogue, one_level):
    return Levelled(system, dialogue, "post", "reply", dict.fromkeys(MECHANISMS, one_level))


def test_agreement_by_hand():
    rows = [
        levelled("base-30", "a", 2),
        levelled("base-30", "b", 0),
        levelled(PEOPLE, "a", 0),
        levelled(PEOPLE, "b", 1),
    ]
    ours = {mechanism: [1, 0, 0, 1] for mechanism in MECHANISMS}
    found, gaps = agreement(rows, ours), differences(rows, ours)
    assert found["er"]["base-30"] == {
        "n": 2, "accuracy": 50.0, "kappa": pytest.approx(1 / 3), "confusion": [[1, 0, 0], [0, 0, 0], [0, 1, 0]],
    }  # fmt: skip
    assert found["ip"][PEOPLE]["kappa"] == 1 and found["ex"][ALL]["n"] == 4 and found["ex"][ALL]["accuracy"] == 75
    # Ours 1 against 0 and 0 against 1; published 2 against 0 and 0 against 1.
    assert list(gaps) == ["base-30"] and gaps["base-30"]["diff_er"] == 1 and gaps["base-30"]["published_diff_er"] == 2.5
    flat = summary(found, gaps)
    assert flat["er_published_kappa_base_30"] == pytest.approx(1 / 3) and flat["ex_published_gap_base_30"] == -1.5
    assert set(flat) == {
        f"{short}_published_{name}" for short in SHORTS
        for name in ("accuracy", "kappa", "kappa_base_30", "kappa_people", "gap_base_30")
    }  # fmt: skip


def test_classifiers_learn_from_levels_without_rationales(folder):
    """A batch without any rationale has the loss of its levels, and a finite one."""
    classifiers = untrained()
    rows = corpus({name: [] for name in MECHANISMS}, read_levels(folder))["explorations"][:4]
    model = classifiers.models["explorations"].eval()
    examples = encode(classifiers, rows)
    posts = training.post_states(classifiers, model["seeker_encoder"]["bert"], [row.seeker_post for row in rows])
    both, levels = (
        training._loss(model, examples, [], posts, replace(SETTINGS, lambda_rationale=weight)).item()
        for weight in (0.5, 0.0)
    )
    assert both == levels > 0


# Params, signature


def test_the_signature_says_what_numbers_compare_with(folder, tmp_path, monkeypatch):
    """And the metrics have the agreement with the published levels beside the quality on annotated posts."""
    monkeypatch.chdir(ROOT)
    settings = replace(SETTINGS, levels=str(folder), max_length=16)
    params = factory.params(epitome=settings, encoder=factory.encoder())
    metrics = learn(params, tmp_path / "checkpoints", tmp_path / "epitome")
    signature = epitome.signature(tmp_path / "epitome")
    assert signature["epitome_classifiers"] == "trained on sample and the published levels of levels"
    assert signature["epitome_compares_with"].startswith("the published levels, as closely as er_")
    for name in ("base", "sft", "sft-dpo"):
        path = folder / f"replies-{name}.csv"
        assert signature[f"epitome_levels_sha256_{path.stem}"] == sha256_of(path)
    assert {f"{short}_{name}" for short in SHORTS for name in ("accuracy", "rationale_f1", "published_kappa")} <= set(
        metrics
    )
    assert {
        f"{short}_published_{name}" for short in SHORTS for name in ("kappa_sft", "gap_base", "valid_kappa")
    } <= set(metrics)
    details = json.loads((tmp_path / "epitome/epitome.json").read_text())
    assert details["agreement"]["er"][ALL]["n"] == int(details["test_levelled"])
    assert set(details["differences"]) == {"base", "sft"}


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


def test_the_second_corpus_is_downloaded_and_a_dependency():
    """Of the classifier's stage by a path of `classifiers`, which the default repeats."""
    assert "empo_human" not in needed(check(composed("recipe=empo"), "conf"))
    params = check(composed("recipe=empo", "epitome.levels=data/raw/empo_human"), "conf")
    assert "empo_human" in needed(params) and params.classifiers["epitome"].sentences == "data/raw/empo_human"
    assert params.epitome.level_corpus == Path("data/raw/empo_human")
    assert check(composed("recipe=empo"), "conf").epitome.level_corpus is None
