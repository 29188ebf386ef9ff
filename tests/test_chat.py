"""Chat templates as token ids: small tokenizers with the templates and formats of four model families."""

import json
from importlib.resources import files

import pytest
import transformers
from conftest import SENTENCES
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from attune.data.dialogue import Turn
from attune.models.chat_template import (
    encode_completion,
    encode_dialogue,
    encode_prompt,
    fit_context,
    render,
    stop_tokens,
)
from attune.runtime.errors import TemplateError
from attune.training.dpo.encoding import encode_pair

TEMPLATES = files("trl") / "chat_templates"
# Role names of the templates, so that the pictures show them as single tokens.
TEXTS = [*SENTENCES * 3, *["user", "assistant", "model", "INST", "\n\n"] * 3]
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def with_bos(backend, bos):
    """As in the originals: a text gets a BOS, but a rendered template must not get a second BOS."""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, backend.token_to_id(bos))]
    )


def byte_level(words, special, texts, vocab_size):
    """Byte-level BPE, trained on `texts`, over the parts of the pre-tokenizer `words`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = words
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def llama3():
    """Byte-level BPE over Llama 3's words."""
    words = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    parts = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    backend = byte_level(parts, special, TEXTS, 800)
    with_bos(backend, special[0])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0],
        eos_token="<|eot_id|>",
        additional_special_tokens=special[2:],
    )
    tokenizer.chat_template = (TEMPLATES / "llama3.jinja").read_text(encoding="utf-8")
    return tokenizer


def sentencepiece(template, special, bos, eos, *, prepend, merges=()):
    """BPE with spaces as ▁ and bytes as a fallback; Mistral puts a ▁ before any text (`prepend`), Gemma does not."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|▁?[^▁\w]"), "isolated")
    texts = [f"{space}{text}" for text in [*TEXTS, "[ ] ( / < | >"] if text.strip() for space in ("", " ")]
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=800, show_progress=False))
    model = json.loads(trained.to_str())["model"]

    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(model["vocab"], key=model["vocab"].get)]
    tokens += ["".join(pair) for pair in merges]
    pairs = [*map(tuple, model["merges"]), *merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if prepend else []), normalizers.Replace(" ", "▁")]
    )
    strip = [decoders.Strip(" ", 1, 0)] if prepend else []
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    backend.add_special_tokens(special)
    with_bos(backend, bos)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, unk_token="<unk>"
    )
    tokenizer.chat_template = template
    return tokenizer


# As Mistral 7B Instruct v0.1, it refuses a system turn and two consecutive turns of a role.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('the roles do not alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token + ' ' }}"
    "{% else %}{{ raise_exception('a role that is neither') }}{% endif %}{% endfor %}"
)
# Has no BOS: in the training of this family the tokenizer added it.
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)


def mistral(template=MISTRAL_TEMPLATE, merges=()):
    return sentencepiece(template, ["<unk>", "<s>", "</s>"], "<s>", "</s>", prepend=True, merges=merges)


def gemma():
    template = (TEMPLATES / "gemma.jinja").read_text(encoding="utf-8")
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    return sentencepiece(template, special, "<bos>", "<eos>", prepend=False)


FAMILIES = {"llama3": llama3, "mistral": mistral, "zephyr": lambda: mistral(ZEPHYR_TEMPLATE), "gemma": gemma}
# The token that ends a reply, and the token that opens a turn: a picture has a line for each turn.
ENDS = {"llama3": "<|eot_id|>", "mistral": "</s>", "zephyr": "</s>", "gemma": "<end_of_turn>", "tiny": "</s>"}
OPENINGS = {
    "llama3": ("<|start_header_id|>",),
    "mistral": ("▁[",),
    "zephyr": ("▁<", "<"),
    "gemma": ("<start_of_turn>",),
    "tiny": ("<|user|>", "<|assistant|>"),
}


@pytest.fixture(scope="module", params=[*FAMILIES, "tiny"])
def family(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(family, tiny_tokenizer):
    return tiny_tokenizer if family == "tiny" else FAMILIES[family]()


def turns(*texts):
    return tuple(Turn("user" if i % 2 == 0 else "assistant", text) for i, text in enumerate(texts))


def picture(tokenizer, dialogue, openings, max_length=256):
    """A line for each turn; `a` below a token: in the loss mask of loss_on=assistant, `u`: of loss_on=user."""
    by_role = {
        role: encode_dialogue(tokenizer, dialogue, loss_on=role, max_length=max_length)
        for role in ("assistant", "user")
    }
    assert by_role["assistant"].ids == by_role["user"].ids
    lines = [("", "")]
    tokens = tokenizer.convert_ids_to_tokens(by_role["assistant"].ids)
    for token, *learnt in zip(tokens, by_role["assistant"].mask, by_role["user"].mask, strict=True):
        if token in openings:
            lines.append(("", ""))
        mark = {(True, False): "a", (False, True): "u", (False, False): " "}[tuple(learnt)]
        lines[-1] = (f"{lines[-1][0]}{token} ", f"{lines[-1][1]}{mark * len(token)} ")
    return "\n" + "".join(f"{row.rstrip()}\n" for line in lines for row in line if row.strip())


DIALOGUE = turns("I lost my dog.", "I am sorry!", "Thank you.", "How old was she?")
PICTURES = {
    "llama3": """
<|begin_of_text|>
<|start_header_id|> user <|end_header_id|> ĊĊ I Ġlost Ġmy Ġdog . <|eot_id|>
                                              u uuuuu uuu uuuu u
<|start_header_id|> assistant <|end_header_id|> ĊĊ I Ġam Ġsorry ! <|eot_id|>
                                                   a aaa aaaaaa a aaaaaaaaaa
<|start_header_id|> user <|end_header_id|> ĊĊ Thank Ġyou . <|eot_id|>
                                              uuuuu uuuu u
<|start_header_id|> assistant <|end_header_id|> ĊĊ How Ġold Ġwas Ġshe ? <|eot_id|>
                                                   aaa aaaa aaaa aaaa a aaaaaaaaaa
""",
    "mistral": """
<s>
▁[ INST ] ▁I ▁lost ▁my ▁dog .
          uu uuuuu uuu uuuu u
▁[ / INST ] I ▁am ▁sorry ! </s> ▁
            a aaa aaaaaa a aaaa
▁[ INST ] ▁Thank ▁you .
          uuuuuu uuuu u
▁[ / INST ] How ▁old ▁was ▁she ? </s>
            aaa aaaa aaaa aaaa a aaaa
""",
    "zephyr": """
<s>
▁< | user | > <0x0A> I ▁lost ▁my ▁dog . </s> ▁ <0x0A>
                     u uuuuu uuu uuuu u
< | assistant | > <0x0A> I ▁am ▁sorry ! </s> ▁ <0x0A>
                         a aaa aaaaaa a aaaa
< | user | > <0x0A> Thank ▁you . </s> ▁ <0x0A>
                    uuuuu uuuu u
< | assistant | > <0x0A> How ▁old ▁was ▁she ? </s>
                         aaa aaaa aaaa aaaa a aaaa
""",
    "gemma": """
<bos>
<start_of_turn> user <0x0A> I ▁lost ▁my ▁dog . <end_of_turn> <0x0A>
                            u uuuuu uuu uuuu u
<start_of_turn> model <0x0A> I ▁am ▁sorry ! <end_of_turn> <0x0A>
                             a aaa aaaaaa a aaaaaaaaaaaaa
<start_of_turn> user <0x0A> Thank ▁you . <end_of_turn> <0x0A>
                            uuuuu uuuu u
<start_of_turn> model <0x0A> How ▁old ▁was ▁she ? <end_of_turn>
                             aaa aaaa aaaa aaaa a aaaaaaaaaaaaa
""",
    "tiny": """
<s>
<|user|> I Ġlost Ġmy Ġdog .
         u uuuuu uuu uuuu u
<|assistant|> I Ġam Ġsorry ! </s>
              a aaa aaaaaa a aaaa
<|user|> Thank Ġyou .
         uuuuu uuuu u
<|assistant|> How Ġold Ġwas Ġshe ? </s>
              aaa aaaa aaaa aaaa a aaaa
""",
}


def test_loss_mask(family, tokenizer):
    assert picture(tokenizer, DIALOGUE, OPENINGS[family]) == PICTURES[family]


def test_one_bos_and_an_end_for_each_reply(family, tokenizer):
    encoded = encode_dialogue(tokenizer, DIALOGUE, loss_on="assistant", max_length=256)
    end = tokenizer.convert_tokens_to_ids(ENDS[family])
    assert encoded.ids[0] == tokenizer.bos_token_id
    assert encoded.ids.count(tokenizer.bos_token_id) == 1
    assert [token for token, learn in zip(encoded.ids, encoded.mask, strict=True) if learn].count(end) == 2
    assert encoded.ids[-1] == end


REPLIES = ["Yes", "No. ¿Por qué?", "I am so sorry 🤗!", "אני מצטער", '10 years? "Wow" [sic]', "One\nTwo", "a  b"]


@pytest.mark.parametrize("reply", REPLIES)
def test_completion_is_prompt_and_reply(family, tokenizer, reply):
    context = DIALOGUE[:3]
    completion = encode_completion(tokenizer, context, reply)
    assert completion.prompt == encode_prompt(tokenizer, context, max_length=256)
    assert tokenizer.decode(completion.reply) == reply + ENDS[family]
    # Training and scoring read the same tokens.
    encoded = encode_dialogue(tokenizer, (*context, Turn("assistant", reply)), loss_on="assistant", max_length=256)
    assert completion.prompt + completion.reply == encoded.ids
    assert encoded.mask[len(completion.prompt) - 1 :] == [False] + [True] * len(completion.reply)


# Words that are also in the templates.
@pytest.mark.parametrize("words", ["I", "s", "user", "INST", "eot_id", "end_of_turn", "I am 🤗 so sad"])
def test_loss_on_user_covers_the_words_only(tokenizer, words):
    for dialogue in (turns(words), turns("Hello.", "Hi.", words), turns("Hello.", "Hi.", words, words)):
        encoded = encode_dialogue(tokenizer, dialogue, loss_on="user", max_length=256)
        learnt = [token for token, learn in zip(encoded.ids, encoded.mask, strict=True) if learn]
        texts = [turn.text for turn in dialogue if turn.role == "user"]
        assert tokenizer.decode(learnt).replace(" ", "") == "".join(texts).replace(" ", "")


def test_stop_tokens(family, tokenizer):
    stops = tokenizer.convert_ids_to_tokens(stop_tokens(tokenizer))
    assert sorted(stops) == sorted({ENDS[family], tokenizer.eos_token})


def length(tokenizer, context):
    return len(encode_prompt(tokenizer, context, max_length=10_000))


def test_context_truncation(tokenizer):
    context = turns("I lost my dog.", "I am sorry!", "Thank you.", "How old was she?", "She was ten years old.")
    last_turn, seen = context[-1].text, set()
    # The shortest prompt has a single word.
    shortest = length(tokenizer, turns("old."))
    for room in range(shortest, length(tokenizer, context) + 1):
        fitted = fit_context(tokenizer, context, room)
        assert length(tokenizer, fitted) <= room
        assert fitted[0].role == "user"
        # No more was cut than necessary.
        if len(fitted) > 1 or fitted[0].text == last_turn:
            longer = context[-len(fitted) - 2 :]
            assert fitted == context[-len(fitted) :]
        else:
            words = fitted[0].text.split()
            longer = turns(" ".join(last_turn.split()[-len(words) - 1 :]))
            assert last_turn.endswith(fitted[0].text)
        assert fitted == context or length(tokenizer, longer) > room
        seen.add((len(fitted), fitted[0].text))
    assert {(5, "I lost my dog."), (3, "Thank you."), (1, last_turn), (1, "old.")} < seen


def test_truncation_inside_a_word(tokenizer):
    word = "".join(map(str, range(500)))
    (fitted,) = fit_context(tokenizer, turns(word), 60)
    assert length(tokenizer, [fitted]) <= 60
    assert fitted.text and word.endswith(fitted.text)


def test_window_without_room(tokenizer):
    with pytest.raises(TemplateError, match=r"^no prompt fits into 2 tokens under this chat template$"):
        fit_context(tokenizer, DIALOGUE[:3], 2)
    with pytest.raises(TemplateError, match="no prompt fits into 1 tokens"):
        encode_dialogue(tokenizer, DIALOGUE, loss_on="assistant", max_length=2)


LONG = turns("I lost my dog.", "I am sorry!", "She was my best friend. Thank you.", "How old was she?")
CUT = {
    # The dialogue has exactly this length.
    31: """
<s>
<|user|> I Ġlost Ġmy Ġdog .
         u uuuuu uuu uuuu u
<|assistant|> I Ġam Ġsorry ! </s>
              a aaa aaaaaa a aaaa
<|user|> She Ġwas Ġmy Ġbest Ġfriend . Ġ Thank Ġyou .
         uuu uuuu uuu uuuuu uuuuuuu u u uuuuu uuuu u
<|assistant|> How Ġold Ġwas Ġshe ? </s>
              aaa aaaa aaaa aaaa a aaaa
""",
    # The oldest exchange is dropped as a whole.
    30: """
<s>
<|user|> She Ġwas Ġmy Ġbest Ġfriend . Ġ Thank Ġyou .
         uuu uuuu uuu uuuuu uuuuuuu u u uuuuu uuuu u
<|assistant|> How Ġold Ġwas Ġshe ? </s>
              aaa aaaa aaaa aaaa a aaaa
""",
    # Then the user's first words, so that the reply is complete.
    18: """
<s>
<|user|> was Ġmy Ġbest Ġfriend . Ġ Thank Ġyou .
         uuu uuu uuuuu uuuuuuu u u uuuuu uuuu u
<|assistant|> How Ġold Ġwas Ġshe ? </s>
              aaa aaaa aaaa aaaa a aaaa
""",
    # A reply of more than half the window is truncated at its end.
    11: """
<s>
<|user|> Thank Ġyou .
         uuuuu uuuu u
<|assistant|> How Ġold Ġwas Ġshe ?
              aaa aaaa aaaa aaaa a
""",
}


@pytest.mark.parametrize("max_length", CUT)
def test_dialogue_truncation(tiny_tokenizer, max_length):
    assert picture(tiny_tokenizer, LONG, OPENINGS["tiny"], max_length) == CUT[max_length]


def test_dialogue_fits_every_window(family, tokenizer):
    whole = encode_dialogue(tokenizer, DIALOGUE, loss_on="assistant", max_length=256)
    end = tokenizer.convert_tokens_to_ids(ENDS[family])
    shortest = 2 * len(encode_completion(tokenizer, turns("a"), DIALOGUE[-1].text).prompt) + 4
    for max_length in range(shortest, len(whole.ids) + 2):
        encoded = encode_dialogue(tokenizer, DIALOGUE, loss_on="assistant", max_length=max_length)
        assert len(encoded.ids) == len(encoded.mask) <= max_length
        assert encoded.ids[0] == tokenizer.bos_token_id
        assert encoded.ids[-1] == end and encoded.mask[-1]
        assert (encoded == whole) == (max_length >= len(whole.ids))


def test_template_that_depends_on_later_turns(tiny_tokenizer):
    tokenizer = FAMILIES["llama3"]()
    tokenizer.chat_template = "{{ bos_token }}{{ messages | length }}" + tiny_tokenizer.chat_template
    with pytest.raises(
        TemplateError, match=r"'<\|begin_of_text\|>' is followed by '1.*' without the reply, by '2.*' with it"
    ):
        encode_completion(tokenizer, DIALOGUE[:1], "Oh!")
    with pytest.raises(TemplateError, match="renders turn 1 differently when others follow"):
        encode_dialogue(tokenizer, DIALOGUE, loss_on="assistant", max_length=256)
    with pytest.raises(TemplateError, match="renders turn 0 differently when others follow"):
        encode_dialogue(tokenizer, DIALOGUE, loss_on="user", max_length=256)


def tokens_of(tokenizer, completion):
    return tokenizer.convert_ids_to_tokens(completion.prompt)[-3:], tokenizer.convert_ids_to_tokens(completion.reply)


def test_token_boundary_before_the_reply():
    """Mistral's tokenizer merges "](", but a model that generates has read "]" and continues with "("."""
    tokenizer = mistral(merges=[("]", "(")])
    joined = tokenizer.convert_ids_to_tokens(tokenizer("[/INST](no)!", add_special_tokens=False)["input_ids"])
    assert "](" in joined
    completion = encode_completion(tokenizer, DIALOGUE[:1], "(no)!")
    before, reply = tokens_of(tokenizer, completion)
    assert before[-1] == "]" and reply[0] == "(" and reply[-1] == "</s>"
    assert tokenizer.decode(completion.reply) == "(no)!</s>"
    # The same for a reply in the context, in SFT on the whole dialogue, and in the loss mask.
    context = (*DIALOGUE[:1], Turn("assistant", "(no)!"), *DIALOGUE[2:3])
    followed = encode_completion(tokenizer, context, "(oh)")
    encoded = encode_dialogue(tokenizer, (*context, Turn("assistant", "(oh)")), loss_on="assistant", max_length=256)
    assert followed.prompt == encode_prompt(tokenizer, context, max_length=256)
    assert followed.prompt[: len(completion.prompt + completion.reply)] == completion.prompt + completion.reply
    assert encoded.ids == followed.prompt + followed.reply
    learnt = [token for token, learn in zip(encoded.ids, encoded.mask, strict=True) if learn]
    assert learnt == completion.reply + followed.reply
    pair = encode_pair(tokenizer, DIALOGUE[:1], "(no)!", "Oh!", 256)
    assert (pair["prompt_ids"], pair["chosen_ids"]) == (completion.prompt, completion.reply)


def test_tokens_are_the_tokenizers_own(tokenizer):
    text = render(tokenizer, DIALOGUE).rstrip()
    encoded = encode_dialogue(tokenizer, DIALOGUE, loss_on="assistant", max_length=256)
    assert encoded.ids == tokenizer(text, add_special_tokens=False)["input_ids"]


PAIRS = {
    "equal lengths": ("I am sorry!", "I am happy!"),
    "unequal lengths": ("No.", "She was ten years old and she was my best friend."),
    "one token": ("I", "She"),
    "the same first tokens": ("She was my best friend.", "She was ten years old."),
    "one begins with the other": ("I am", "I am sorry!"),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pair_fits_every_window(family, tokenizer, case):
    texts = PAIRS[case]
    context = turns("I lost my dog.", "How old was she?", "She was ten years old.")
    end = tokenizer.convert_tokens_to_ids(ENDS[family])
    replies = [encode_completion(tokenizer, context, text).reply for text in texts]
    longest = max(map(len, replies))
    whole = length(tokenizer, context) + longest
    shortest = 2 * length(tokenizer, turns("old."))
    for max_length in range(shortest, whole + 2):
        pair = encode_pair(tokenizer, context, *texts, max_length)
        prompt, sides = pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]]
        assert len(prompt) + max(map(len, sides)) <= max_length
        # Chosen and rejected follow the same prompt, that of the truncated context.
        room = max_length - min(longest, max_length // 2)
        assert prompt == encode_prompt(tokenizer, context, room)
        for side, reply in zip(sides, replies, strict=True):
            assert side == reply[: max_length - len(prompt)]
            assert side[-1] == end or len(prompt) + len(side) == max_length
        if longest <= max_length // 2:
            assert sides == replies
        if max_length >= whole:
            assert prompt == encode_prompt(tokenizer, context, 10_000)
        # Chosen and rejected are treated alike.
        swapped = encode_pair(tokenizer, context, *reversed(texts), max_length)
        assert swapped == {"prompt_ids": prompt, "chosen_ids": sides[1], "rejected_ids": sides[0]}


def test_long_reply_is_truncated(tiny_tokenizer):
    pair = encode_pair(
        tiny_tokenizer, turns("I lost my dog."), "She was ten years old and she was my best friend.", "I", 12
    )
    assert tiny_tokenizer.convert_ids_to_tokens(pair["prompt_ids"]) == [
        "<s>",
        "<|user|>",
        "my",
        "Ġdog",
        ".",
        "<|assistant|>",
    ]
    assert tiny_tokenizer.decode(pair["chosen_ids"]) == "She was ten years old and"
    assert tiny_tokenizer.decode(pair["rejected_ids"]) == "I</s>"


def test_no_second_bos(family, tokenizer):
    rendered = render(tokenizer, DIALOGUE)
    assert rendered.count(tokenizer.bos_token) == 1
    assert rendered.startswith(tokenizer.bos_token)


def test_tokenizer_without_bos():
    tokenizer = mistral(ZEPHYR_TEMPLATE)
    tokenizer.backend_tokenizer.post_processor = None
    assert render(tokenizer, DIALOGUE[:1]) == "<|user|>\nI lost my dog.</s>\n"
