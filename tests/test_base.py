"""Stage `base`: the tiny model is the same for the same seed, and a hub model is named, not copied."""

import hashlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from stages import base as base_stage
from stages.dialogues import CorpusError, Turn
from stages.modeling.loading import load_base, load_tokenizer, origin
from stages.modeling.process import ModelError
from stages.modeling.tiny import packed_blocks, train_tokenizer
from stages.params import Hardware, Model, Tiny

HARDWARE = Hardware("cpu", "fp32", 1, 4, False, False, 512, 5)
MADE = Model("t", None, None, None, None, False, False)
TINY = Tiny(400, 32, 64, 1, 2, 64, "sample", 1, 1e-2, 4, 16, "llama")
DIALOGUES = [
    (Turn("user", f"i saw {n} dogs today"), Turn("assistant", f"wow {n} dogs that is a lot")) for n in range(40)
]


def make(folder: Path, seed: int, monkeypatch) -> Path:
    monkeypatch.setattr(base_stage, "CURVES", folder / "curves")
    model, tokenizer = base_stage.make(DIALOGUES, MADE, TINY, HARDWARE, seed, folder / "checkpoints")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    base_stage.write_json(folder / "base/base.json", {"name": "t", "hub_id": None, "revision": None, "commit": None})
    return folder / "base"


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def test_same_seed_makes_the_same_weights_and_files_hold_no_pickle(tmp_path, monkeypatch):
    one, again, other = (make(tmp_path / name, seed, monkeypatch) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert weights(one) == weights(again) != weights(other)
    assert (one / "tokenizer.json").read_bytes() == (other / "tokenizer.json").read_bytes()
    assert {path.suffix for path in one.iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.parametrize(
    ("architecture", "model_type"), [("llama", "llama"), ("mistral", "mistral"), ("gemma", "gemma")]
)
def test_every_architecture_has_what_sets_it_apart(tmp_path, monkeypatch, architecture, model_type):
    import torch

    monkeypatch.setattr(sys.modules[__name__], "TINY", replace(TINY, architecture=architecture))
    model = load_base(make(tmp_path, 1, monkeypatch), HARDWARE).eval()
    assert model.config.model_type == model_type
    ids = torch.arange(5, 5 + 60)[None]
    moved = ids.clone()
    moved[0, 0] += 100
    with torch.no_grad():
        difference = (model(moved).logits - model(ids).logits).abs().amax(-1)
        embedded = model.get_input_embeddings().weight[ids]
        entered = model(ids, output_hidden_states=True).hidden_states[0]
    first, last = difference[0, [0, -1]].tolist()
    assert first > 0
    # One layer sees half of 64 positions under Mistral's window, and everything without it.
    assert (last == 0) is (architecture == "mistral")
    scale = TINY.hidden_size**0.5 if architecture == "gemma" else 1
    torch.testing.assert_close(entered, embedded * scale)


def test_made_model_loads_again_with_its_template(tmp_path, monkeypatch):
    folder = make(tmp_path, 1, monkeypatch)
    assert origin(folder) == (str(folder), None)
    assert load_base(folder, HARDWARE).config.vocab_size == len(load_tokenizer(folder))
    assert "{% generation %}" in load_tokenizer(folder).chat_template


def test_pretraining_lowers_the_loss(tmp_path, monkeypatch):
    make(tmp_path, 1, monkeypatch)
    rows = (tmp_path / "curves/plots/metrics/loss.tsv").read_text().splitlines()[1:]
    losses = [float(row.split("\t")[1]) for row in rows]
    assert losses[-1] < losses[0] - 0.5


def test_blocks_are_full_and_hold_every_dialogue_in_order():
    tokenizer = train_tokenizer((t.text for turns in DIALOGUES for t in turns), 400, 64)
    blocks = packed_blocks(tokenizer, DIALOGUES, 16)
    assert {len(block["input_ids"]) for block in blocks} == {16}
    text = tokenizer.decode([token for block in blocks for token in block["input_ids"]])
    assert text.startswith(
        "<s><|user|>i saw 0 dogs today<|assistant|>wow 0 dogs that is a lot</s><s><|user|>i saw 1 dogs"
    )
    assert all(block["labels"] == block["input_ids"] for block in blocks)


def test_corpus_shorter_than_a_block_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"tiny\.corpus = 'sample' is shorter than tiny\.max_length = 16"):
        base_stage.make([(Turn("user", "hi"),)], MADE, TINY, HARDWARE, 1, tmp_path)


def test_jsonl_dialogues_alternate_and_broken_lines_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(base_stage, "RAW", tmp_path)
    (tmp_path / "mine").mkdir()
    file = tmp_path / "mine/dialogues.jsonl"
    file.write_text('{"source": "x", "turns": ["hello", "hi 😀"]}\n', encoding="utf-8")
    assert list(base_stage.pretraining_dialogues("mine")) == [(Turn("user", "hello"), Turn("assistant", "hi 😀"))]
    for broken in ('{"turns": 3}', "{", '{"text": []}'):
        file.write_text('{"turns": ["a", "b"]}\n' + broken + "\n", encoding="utf-8")
        with pytest.raises(CorpusError, match=r"dialogues\.jsonl:2: expected"):
            list(base_stage.pretraining_dialogues("mine"))


def test_hub_model_out_of_reach_is_one_sentence():
    """Tests run offline (conftest): the hub refuses at once, as it would without a network."""
    with pytest.raises(ModelError, match=r"model\.hub_id = 'a/b' at revision 'main' cannot be resolved.*model=tiny"):
        base_stage.resolve(Model("b", None, "a/b", "main", None, False, False))


def test_gpu_that_is_not_there_is_refused(tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    folder = make(tmp_path, 1, monkeypatch)
    with pytest.raises(ModelError, match=r"hardware\.device = 'cuda', but no GPU is visible"):
        load_base(folder, Hardware("cuda", "bf16", 1, 4, False, False, 512, 5))
