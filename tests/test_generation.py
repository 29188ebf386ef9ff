"""Replies and log-probabilities do not depend on the other rows of the batch."""

import copy
import itertools
import json
from dataclasses import replace

import factory
import pytest
import torch
import transformers

from attune.compute.prefix_cache import common_prefix
from attune.data.dialogue import Example, Turn
from attune.data.pair import Pair
from attune.generation.answer import answer, prepare_inputs
from attune.generation.decoding import prefill
from attune.generation.generate import generate_replies, mean_logps, replies_and_logps, stream_reply
from attune.generation.sampling import Draws
from attune.models.chat_template import Completion, encode_completion, encode_prompt
from attune.models.tiny import make_model, train_tokenizer
from attune.pairs.held_out import held_out
from attune.pairs.opposite_emotion import build_pairs, group_by_label

HARDWARE = factory.hardware()
GREEDY = factory.generate(max_new_tokens=12, max_length=96)
OPPOSITES = {"sad": "joyful", "joyful": "sad"}
TEXTS = [
    "i lost my keys",
    "so happy today",
    "a",
    "my dog ran away and i looked for him all night long",
    "why 😀?\nno",
    "ok then",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 3, 320, 128)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer, factory.tiny(vocab_size=320), seed=3).eval()


@pytest.fixture(scope="module")
def prompts(tokenizer) -> list[list[int]]:
    return [encode_prompt(tokenizer, [Turn("user", text)], 84) for text in TEXTS]


def completions(tokenizer) -> list[Completion]:
    pairs = zip(TEXTS, [*TEXTS[1:], "x"], strict=True)
    return [encode_completion(tokenizer, [Turn("user", text)], reply) for text, reply in pairs]


def replies(model, tokenizer, prompts, hardware=HARDWARE, draws=None, max_new_tokens=GREEDY.max_new_tokens):
    return generate_replies(model, tokenizer, prompts, max_new_tokens, hardware, draws)


def ending(model, stop: int):
    """The model with a bias towards `stop`, so that replies end at unequal lengths."""
    made = copy.deepcopy(model)
    made.lm_head = torch.nn.Linear(*reversed(made.lm_head.weight.shape))
    with torch.no_grad():
        made.lm_head.weight.copy_(40 * model.lm_head.weight)
        made.lm_head.bias.zero_()[stop] = 8
    return made


def of_architecture(name: str, tokenizer):
    """A random model; Mistral's sliding window is shorter than a prompt."""
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": False}
    window = {"sliding_window": 6} if name == "mistral" else {}
    torch.manual_seed(3)
    return transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(name, **sizes, **window)
    ).eval()


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma"])
def test_replies_equal_transformers(name, tokenizer, prompts):
    """Greedy, prompt by prompt; ours in a single batch, in which rows end early and are dropped."""
    stop = tokenizer.eos_token_id
    made = ending(of_architecture(name, tokenizer), stop)
    expected, lengths = [], set()
    for prompt in prompts:
        ids = torch.tensor([prompt])
        options = {"do_sample": False, "pad_token_id": tokenizer.pad_token_id, "eos_token_id": stop}
        output = made.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, **options)
        expected.append(tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True).strip())
        lengths.add(output.shape[1] - len(prompt))
    assert len(lengths) > 1
    assert replies(made, tokenizer, prompts) == expected


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_common_prefix_is_computed_once(name, tokenizer):
    """Prompts with a long common beginning: the tokens that the model reads, and its logits after them."""
    begin = tokenizer("my dog ran away and i looked for him all night long")["input_ids"]
    rests = [[5], [6, 7, 8, 9], [6, 7], [6, 7]]
    made, read = of_architecture(name, tokenizer), []
    count = made.register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"]), with_kwargs=True)
    with torch.no_grad():
        prefilled = prefill(made, [begin + rest for rest in rests], 0)
        # Mistral's window would count the padding between the common beginning and the rest.
        assert [tuple(ids.shape) for ids in read] == (
            [(1, len(begin)), (3, 4)] if name == "llama" else [(3, len(begin) + 4)]
        )
        assert prefilled.shared == (len(begin) if name == "llama" else 0)
        count.remove()
        for logits, rest in zip(prefilled.logits, rests, strict=True):
            torch.testing.assert_close(logits, made(torch.tensor([begin + rest])).logits[0, -1])


def test_a_prompt_that_begins_another_keeps_a_token():
    assert common_prefix([[1, 2, 3], [1, 2], [1, 2, 4]]) == 1
    assert common_prefix([[1], [1, 2]]) == common_prefix([[1, 2], [2, 2]]) == 0


def test_batching_does_not_change_replies(model, tokenizer, prompts):
    batched = replies(model, tokenizer, prompts)
    assert batched == [replies(model, tokenizer, [p])[0] for p in prompts]
    assert batched == replies(model, tokenizer, prompts, replace(HARDWARE, batch_tokens=1))
    assert len(set(batched)) > 1


def test_bf16_replies_are_those_of_bf16_autocast(tokenizer, prompts):
    """Weights, keys and values are stored in bf16, where autocast would cast them for every product."""
    hardware = replace(HARDWARE, dtype="bf16")
    made = of_architecture("llama", tokenizer)
    expected = []
    for prompt in prompts:
        with torch.autocast("cpu", torch.bfloat16):
            ids = made.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0)
        expected.append(tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True).strip())
    assert replies(made, tokenizer, prompts, hardware, max_new_tokens=4) == expected
    assert made.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_sampling_is_seeded(model, tokenizer, prompts):
    first, again, other = (
        replies(model, tokenizer, prompts, draws=Draws(1.0, 1.0, range(s, s + len(prompts)))) for s in (1, 1, 100)
    )
    assert first == again != other


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", ["llama", "mistral", "gemma"])
def test_a_streamed_reply_is_the_whole_one_in_whole_words(name, tokenizer, prompts, sampled):
    """Random replies, some of which end early and some within a character."""
    made = ending(of_architecture(name, tokenizer), tokenizer.eos_token_id)
    draws = [Draws(1.5, 0.95, [seed]) if sampled else None for seed in range(len(prompts))]
    pieces = []
    for prompt, drawn in zip(prompts, draws, strict=True):
        streamed = list(stream_reply(made, tokenizer, prompt, 24, HARDWARE, drawn))
        assert ["".join(streamed)] == replies(made, tokenizer, [prompt], draws=drawn, max_new_tokens=24)
        # What is yet to come begins with white space: the word before it was whole.
        assert all(later[0].isspace() and not piece[-1].isspace() for piece, later in itertools.pairwise(streamed))
        pieces += streamed
    assert len(pieces) > len(prompts)


def test_no_special_tokens_and_max_new_tokens(model, tokenizer, prompts):
    for reply in replies(model, tokenizer, prompts):
        assert not set(tokenizer.all_special_tokens) & set(tokenizer.tokenize(reply))
        assert len(tokenizer(reply, add_special_tokens=False)["input_ids"]) <= GREEDY.max_new_tokens


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma"])
def test_mean_logps_equal_a_plain_forward_pass(name, tokenizer):
    """Batches of unequal prompts, some of them shared by two replies, against a forward pass for each reply."""
    model = of_architecture(name, tokenizer)
    others = [Completion(one.prompt, one.reply[-1 - i :]) for i, one in enumerate(completions(tokenizer))]
    both = [one for pair in zip(completions(tokenizer), others, strict=True) for one in pair]
    ours = mean_logps(model, tokenizer, both, HARDWARE)
    for score, completion in zip(ours, both, strict=True):
        ids = torch.tensor([completion.prompt + completion.reply])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].log_softmax(-1)
        taken = [logps[len(completion.prompt) + i - 1, token].item() for i, token in enumerate(completion.reply)]
        assert score == pytest.approx(sum(taken) / len(taken), rel=1e-5)


@pytest.mark.parametrize("tokens", [HARDWARE.batch_tokens, 1], ids=["one batch", "a batch for each"])
def test_one_prefill_serves_replies_and_log_probabilities(model, tokenizer, prompts, tokens):
    """Prompts with two given replies, one and none."""
    hardware = replace(HARDWARE, batch_tokens=tokens)
    given = [[one.reply, one.reply[-2:]][: i % 3] for i, one in enumerate(completions(tokenizer))]
    made, scores = replies_and_logps(model, tokenizer, prompts, given, GREEDY.max_new_tokens, hardware)
    assert made == replies(model, tokenizer, prompts)
    flat = [Completion(prompt, reply) for prompt, both in zip(prompts, given, strict=True) for reply in both]
    assert list(map(len, scores)) == list(map(len, given))
    assert [score for both in scores for score in both] == pytest.approx(
        mean_logps(model, tokenizer, flat, HARDWARE), rel=1e-5
    )


def test_a_record_for_each_example_in_order(model, tokenizer):
    examples = [
        Example(f"test/{i}", sorted(OPPOSITES)[i % 2], (Turn("user", text),), f"{text} {i}")
        for i, text in enumerate(TEXTS * 2)
    ]

    def pairs(part):
        return build_pairs(part, group_by_label(examples), OPPOSITES, seed=2, epoch=0)

    rows = held_out(examples, pairs, limit=8, seed=2)
    records = answer(model, tokenizer, rows, prepare_inputs(tokenizer, rows, GREEDY, 2), GREEDY, HARDWARE)
    assert (
        [r["id"] for r in records] == [example.id for example, _ in rows] == sorted(example.id for example, _ in rows)
    )
    assert len(records) == 8
    for record, (example, pair) in zip(records, rows, strict=True):
        assert (record["reference"], record["rejected"]) == (example.target, pair.rejected)
        assert pair.rejected_label == OPPOSITES[example.label]
        assert record["reference_logp"] < 0 and record["rejected_logp"] < 0
    json.dumps(records)


def test_a_pair_made_elsewhere_is_ranked_by_its_own_prompt(model, tokenizer):
    examples = [Example(f"test/{i}", "sad", (Turn("user", text),), text) for i, text in enumerate(TEXTS)]
    own = [
        replace(example, id=f"own/{i}", context=(Turn("user", TEXTS[i - 1]),), target=f"{TEXTS[i - 2]} ok")
        for i, example in enumerate(examples)
    ]
    pairs = [Pair(e.id, 0, e.context, e.target, TEXTS[i - 3], "", "", "") for i, e in enumerate(own)]
    beside = [(e, replace(pair, id=e.id)) for e, pair in zip(examples, pairs, strict=True)]
    rows = [*beside[:-1], (examples[-1], None)]
    records = answer(model, tokenizer, rows, prepare_inputs(tokenizer, rows, GREEDY, 2), GREEDY, HARDWARE)
    alone = list(zip(own, pairs, strict=True))
    expected = answer(model, tokenizer, alone, prepare_inputs(tokenizer, alone, GREEDY, 2), GREEDY, HARDWARE)
    for name in ("reference_logp", "rejected_logp"):
        assert [r[name] for r in records[:-1]] == pytest.approx([r[name] for r in expected[:-1]], rel=1e-5)
        assert records[-1][name] is None
    assert [r["reference"] for r in records] == [e.target for e in examples]


def test_instruction_changes_replies_but_not_the_context(model, tokenizer):
    examples = [
        Example(f"test/{i}", sorted(OPPOSITES)[i % 2], (Turn("user", text),), text) for i, text in enumerate(TEXTS)
    ]
    pairs = build_pairs(examples, group_by_label(examples), OPPOSITES, seed=2, epoch=0)
    rows = held_out(examples, lambda part: pairs, limit=None, seed=2)
    inputs = [prepare_inputs(tokenizer, rows, GREEDY, 2, text) for text in (None, "so happy today")]
    plain, instructed = (answer(model, tokenizer, rows, prepared, GREEDY, HARDWARE) for prepared in inputs)
    assert [r["context"] for r in instructed] == [r["context"] for r in plain]
    assert any(a["reply"] != b["reply"] for a, b in zip(plain, instructed, strict=True))
    paired = [(a, b) for a, b in zip(plain, instructed, strict=True) if a["rejected"]]
    assert paired and all(a[side] != b[side] for a, b in paired for side in ("reference_logp", "rejected_logp"))
