"""Published levels as a second training corpus of EPITOME, and a cross-encoder instead of three bi-encoders."""

import copy
import csv
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
from helpers import small_mpnet
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from attune.classifiers import epitome
from attune.classifiers.common.quality import kappa
from attune.classifiers.epitome import cross_training, training
from attune.classifiers.epitome.agreement import ALL, agreement, differences, summary
from attune.classifiers.epitome.annotations import FILES, IGNORED, Annotation, encode, read_annotations, split_of
from attune.classifiers.epitome.cross_encoder import (
    CrossEncoder,
    level,
    level_logits,
    make_model,
    pair_of,
    states_of,
    tokens_of,
)
from attune.classifiers.epitome.files import load as load_classifiers
from attune.classifiers.epitome.files import save
from attune.classifiers.epitome.learn import corpus, learn, make_classifiers, train_and_measure
from attune.classifiers.epitome.levels import score
from attune.classifiers.epitome.model import MECHANISMS
from attune.classifiers.epitome.published_levels import PEOPLE, Levelled, read_levels
from attune.config.params import check, load
from attune.models.encoder import load_encoder, made
from attune.runtime.errors import DataError, ModelError, ParamsError
from attune.runtime.io import sha256_of
from stages.download import needed

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data/sample/epitome"
HARDWARE = factory.hardware()
SETTINGS = factory.epitome(form="cross-encoder", epochs=1, max_length=24)
POSTS = ["I lost my job.", "My dog died.", "I lost my job.", "", "Why? 😀", "x " * 200]
REPLIES = ["I'm sorry.", "What happened?", "Stay strong.", "I'm sorry.", "", "That must be hard. " * 30]
SHORTS = ("er", "ip", "ex")


@pytest.fixture(scope="session")
def minilm():
    return load_encoder(load(ROOT / "params.yaml").encoder, HARDWARE)


def classifier(encoder, tokenizer, max_length=24, frozen_layers=0):
    """Wide enough for padding or order to show in the logits."""
    torch.manual_seed(4)
    model = make_model(encoder, max_length, frozen_layers).eval()
    for name, parameter in model.named_parameters():
        if "LayerNorm" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return CrossEncoder(model, tokenizer, max_length)


@pytest.fixture
def small():
    return classifier(*made())


@pytest.fixture(params=["bert", "mpnet"])
def either(request):
    return classifier(*(made() if request.param == "bert" else small_mpnet()))


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


@pytest.mark.parametrize("form", ["cross-encoder", "bi-encoder"])
def test_levels_of_held_out_dialogues_move_no_weight(form, folder, tmp_path):
    """And those of the others do."""

    def weights(rows, name):
        torch.manual_seed(1)
        classifiers = make_classifiers(*made(), replace(SETTINGS, form=form), 5)
        metrics, _ = train_and_measure(classifiers, annotated(), rows, SETTINGS, HARDWARE, 5, tmp_path / name)
        models = [classifiers.model] if form == "cross-encoder" else classifiers.models.values()
        return metrics, {f"{i}.{key}": value for i, model in enumerate(models) for key, value in digest(model).items()}

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


# The cross-encoder


def test_a_pair_is_the_tokenizers(minilm):
    """`[CLS] post [SEP] response [SEP]` with BERT's segments, two separators with those of RoBERTa's family."""
    for encoder, tokenizer in (minilm, made(), small_mpnet()):
        one = CrossEncoder(torch.nn.ModuleDict({"encoder": encoder}), tokenizer, 64)
        tokens = tokens_of(one, ["i lost my job.", "I'm SORRY"])
        pair = pair_of(tokenizer, tokens["i lost my job."], tokens["I'm SORRY"])
        expected = tokenizer("i lost my job.", "i'm sorry", return_token_type_ids=True)
        assert list(pair.ids) == expected["input_ids"]
        if encoder.config.model_type == "bert":
            assert [int(i >= pair.response) for i in range(len(pair.ids))] == expected["token_type_ids"]


def test_either_post_is_cut_at_the_maximum_length(small):
    tokens = tokens_of(small, POSTS + REPLIES)
    assert max(len(one.ids) for one in tokens.values()) == small.max_length - 2
    with pytest.raises(ModelError, match=r"max_length = 300: two posts .* do not fit the 512 positions .* at most 255"):
        make_model(made()[0], 300)


def test_one_pass_equals_three_separate_heads(either):
    """In batches as alone, in any order; each distinct pair passes the encoder once."""
    seen = []
    hook = either.model["encoder"].register_forward_pre_hook(
        lambda _, args, given: seen.append(len(given["input_ids"])), with_kwargs=True
    )
    together = level_logits(either, [*POSTS, POSTS[0]], [*REPLIES, REPLIES[0]])
    assert seen == [len(set(zip(POSTS, REPLIES, strict=True)))]
    hook.remove()
    tokens = tokens_of(either, POSTS + REPLIES)
    backwards = level_logits(either, POSTS[::-1], REPLIES[::-1], batch_size=2)
    for mechanism, logits in together.items():
        alone = []
        for post, reply in zip(POSTS, REPLIES, strict=True):
            pair = pair_of(either.tokenizer, tokens[post], tokens[reply])
            states, response = states_of(either.model, [pair])
            # The response's tokens and the last separator.
            assert response.sum() == len(tokens[reply].ids) + 1 and response[0, -1]
            alone.append(level(either.model[mechanism], states, response)[0].detach())
        torch.testing.assert_close(logits[:-1], torch.stack(alone), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backwards[mechanism].flip(0), logits[:-1], atol=1e-5, rtol=1e-5)
        assert logits[-1].equal(logits[0]) and logits.std(0).max() > 0.05


def test_no_replies_and_different_numbers(small):
    assert [len(values) for values in level_logits(small, [], []).values()] == [0, 0, 0]
    with pytest.raises(ValueError, match="zip"):
        level_logits(small, POSTS, REPLIES[:-1])


def test_what_all_mechanisms_say_of_a_pair_is_one_example(small):
    rows = annotated(20)
    joined = cross_training.join(small, rows)
    assert len(joined) == 20 and all(set(one.levels) == set(MECHANISMS) for one in joined)
    twice = {name: [*found, found[0]] if name == "explorations" else found for name, found in rows.items()}
    joined = cross_training.join(small, twice)
    assert len(joined) == 21 and list(joined[-1].levels) == ["explorations"] and joined[-1].pair == joined[0].pair


def test_labels_of_tokens_are_those_of_the_response(minilm):
    one = CrossEncoder(torch.nn.ModuleDict({"encoder": minilm[0]}), minilm[1], 64)
    row = Annotation("I am so sad", "Well. I am SO sorry", 2, ("so sorry",))
    (example,) = cross_training.join(one, {name: [row] for name in MECHANISMS})
    labels = example.rationales["explorations"]
    marked = [token for token, label in zip(example.pair.ids, labels, strict=True) if label == 1]
    assert minilm[1].convert_ids_to_tokens(marked) == ["so", "sorry"]
    assert labels.count(0) == 4 and labels.count(IGNORED) == len(labels) - 6
    (unmarked,) = cross_training.join(one, {name: [replace(row, rationales=None)] for name in MECHANISMS})
    assert set(unmarked.rationales["explorations"]) == {IGNORED}


def gradients(model, examples, settings):
    model.zero_grad()
    value = cross_training.loss(model, examples, settings)
    value.backward()
    return value.item(), {
        name: max((p.grad.abs().max().item() for p in model[name].parameters() if p.grad is not None), default=0.0)
        for name in MECHANISMS
    }


def of(examples, name):
    """The examples with what one mechanism says."""
    return [replace(one, levels={name: one.levels[name]}, rationales={name: one.rationales[name]}) for one in examples]


def test_missing_mechanisms_and_rationales_contribute_no_loss(small):
    settings = replace(SETTINGS, dropout=0.0)
    whole = cross_training.join(small, annotated(6))
    alone = of(whole, "explorations")
    value, moved = gradients(small.model, alone, settings)
    assert [name for name, size in moved.items() if size] == ["explorations"]
    parts = [gradients(small.model, of(whole, name), settings)[0] for name in MECHANISMS]
    assert value == pytest.approx(parts[2], rel=1e-6)
    assert gradients(small.model, whole, settings)[0] == pytest.approx(sum(parts), rel=1e-5)
    # An example without labels next to others changes no mean.
    bare = replace(whole[0], levels={}, rationales={})
    assert gradients(small.model, [*alone, bare], settings)[0] == pytest.approx(value, rel=1e-5)
    assert gradients(small.model, [bare], settings) == (0.0, dict.fromkeys(MECHANISMS, 0.0))


def test_a_bi_encoder_learns_from_levels_without_rationales(folder):
    """A batch without any rationale has the loss of its levels, and a finite one."""
    classifiers = make_classifiers(*made(), replace(SETTINGS, form="bi-encoder"), 5)
    rows = corpus({name: [] for name in MECHANISMS}, read_levels(folder))["explorations"][:4]
    model = classifiers.models["explorations"].eval()
    examples = encode(classifiers, rows)
    posts = training.post_states(classifiers, model["seeker_encoder"]["bert"], [row.seeker_post for row in rows])
    both, levels = (
        training._loss(model, examples, [], posts, replace(SETTINGS, lambda_rationale=weight)).item()
        for weight in (0.5, 0.0)
    )
    assert both == levels > 0


def trained(small, tmp_path, name, epochs=2, hardware=HARDWARE, seed=1):
    one = copy.deepcopy(small)
    settings = replace(SETTINGS, epochs=epochs)
    rows = {name: rows[:26] for name, rows in annotated(26).items()}
    cross_training.train_all(one, rows, settings, hardware, seed, tmp_path / name)
    return digest(one.model)


@pytest.mark.parametrize("frozen", [0, 2])
def test_frozen_and_trained_parameters(frozen, tmp_path):
    small = classifier(*made(), frozen_layers=frozen)
    before, after = digest(small.model), trained(small, tmp_path, "a")
    unchanged = {name for name in before if before[name].equal(after[name])}
    below = ("encoder.embeddings.", *(f"encoder.encoder.layer.{i}." for i in range(frozen)))
    kept = {name for name in before if frozen and name.startswith(below)}
    # Nothing reads the pooler, positions beyond the longest text and tokens that do not occur are in used tables.
    assert kept <= unchanged and all(".pooler." in name or ".key.bias" in name for name in unchanged - kept)
    with pytest.raises(ModelError, match=r"frozen_layers = 6 leaves nothing to train: the encoder has 6"):
        make_model(made()[0], 24, 6)


def test_seed_determines_the_weights(small, tmp_path):
    one, again, other = (trained(small, tmp_path, f"{i}", seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert same(one, again) and not same(one, other)


@pytest.mark.parametrize("step", [1, 4])
def test_resumed_training_equals_uninterrupted_training(step, small, tmp_path, monkeypatch, capsys):
    """In the middle of an epoch and at its end, with dropout."""
    from attune.classifiers.common import fit

    monkeypatch.setattr(fit, "drop_older", lambda *_: None)
    whole = trained(small, tmp_path, "whole", hardware=replace(HARDWARE, save_every=1))
    saved = tmp_path / "whole" / cross_training.NAME
    kept = sorted(saved.glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(kept) == 8
    for path in kept[step:]:
        shutil.rmtree(path)
    assert same(whole, trained(small, tmp_path, "whole"))
    assert f"resuming from {kept[step - 1]}" in capsys.readouterr().err


def test_training_lowers_the_loss_of_every_mechanism(tmp_path):
    settings = replace(SETTINGS, epochs=12, learning_rate=3e-3, head_learning_rate=3e-3, dropout=0.0)
    rows = annotated(16)
    one = make_classifiers(*made(), settings, 1)
    examples = cross_training.join(one, rows)

    def losses():
        with torch.no_grad():
            return [cross_training.loss(one.model.eval(), of(examples, name), settings).item() for name in MECHANISMS]

    before = losses()
    cross_training.train_all(one, rows, settings, HARDWARE, 1, tmp_path)
    assert all(after < start for start, after in zip(before, losses(), strict=True))


# Files, params, signature


def test_save_and_load(either, tmp_path):
    save(either, {"note": "a"}, tmp_path / "epitome")
    live = level_logits(either, POSTS, REPLIES)
    expected = {mechanism: logits.argmax(-1).tolist() for mechanism, logits in live.items()}
    # Levels are in fp32, whatever the precision of training is.
    for dtype in ("fp32", "bf16"):
        assert score(tmp_path / "epitome", POSTS, REPLIES, replace(HARDWARE, dtype=dtype)) == expected
    settings = json.loads((tmp_path / "epitome/epitome.json").read_text())
    assert settings == {"form": "cross-encoder", "max_length": 24, "note": "a"}
    (tmp_path / "epitome/epitome.json").write_text(json.dumps(settings | {"form": "other"}))
    with pytest.raises(
        ModelError, match=r"epitome\.json: form 'other' is not known: run `dvc repro classifier@epitome`"
    ):
        load_classifiers(tmp_path / "epitome", HARDWARE)
    (tmp_path / "epitome/epitome.json").write_text(json.dumps(settings))
    (tmp_path / "epitome/cross_encoder.safetensors").unlink()
    with pytest.raises(ModelError, match=r"cross_encoder\.safetensors is missing: run `dvc repro classifier@epitome`"):
        load_classifiers(tmp_path / "epitome", HARDWARE)


@pytest.mark.parametrize("form", ["bi-encoder", "cross-encoder"])
def test_the_signature_says_what_numbers_compare_with(form, folder, tmp_path, monkeypatch):
    """And the metrics have the agreement with the published levels beside the quality on annotated posts."""
    monkeypatch.chdir(ROOT)
    settings = replace(SETTINGS, form=form, levels=str(folder), max_length=16)
    params = factory.params(epitome=settings, encoder=factory.encoder())
    metrics = learn(params, tmp_path / "checkpoints", tmp_path / "epitome")
    signature = epitome.signature(tmp_path / "epitome")
    assert signature["epitome_form"] == form
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


def test_published_checkpoints_are_bi_encoders():
    with pytest.raises(ParamsError, match=r"epitome\.form = 'cross-encoder' with epitome\.checkpoints = 'my/folder'"):
        check(composed("recipe=empo", "epitome.form=cross-encoder", "epitome.checkpoints=my/folder"), "conf")
