"""MMLU: rows, the harness's prompts, shared prefixes against HFLM, and the stage."""

import json
import math
import shutil
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import factory
import jinja2
import pandas as pd
import pytest
import torch

from attune.models.bert_decoder import decoder_class
from attune.models.loading import load_variant
from attune.models.tiny import make_model, train_tokenizer
from attune.runtime.errors import DataError, ParamsError
from attune.scoring.mmlu import harness
from attune.scoring.mmlu.shared_prefix import Row, can_share, clusters, has_kv_cache, shared_prefix_lm
from stages import intervals
from stages import mmlu as stage

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data/sample/mmlu"
HARDWARE = factory.hardware()
LENGTHS = {"whole": 1024, "some cut": 330, "all cut": 160}
GROUP_OF = {
    "astronomy": "stem",
    "elementary_mathematics": "stem",
    "high_school_geography": "social_sciences",
    "nutrition": "other",
    "world_religions": "humanities",
}


@pytest.fixture(scope="module")
def subjects():
    return harness.read(SAMPLE, shots=5, limit=6)


@pytest.fixture(scope="module")
def tokenizer(subjects):
    texts = [" ".join((q.question, *q.choices)) for subject in subjects.values() for q in subject.dev + subject.test]
    # The vocabulary has " A" to " D", as that of a real model.
    return train_tokenizer(
        [*texts * 2, *("Answer: A Answer: B Answer: C Answer: D " * 20 for _ in range(3))], 600, 1024
    )


def micro(tokenizer, max_positions: int):
    """A random model whose weights are large enough for each token to matter to the choice."""
    tiny = factory.tiny(vocab_size=600, max_positions=max_positions)
    model = make_model(tokenizer, tiny, seed=3).eval()
    return enlarge(model)


def enlarge(model):
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name and weight.ndim > 1:
                weight.mul_(8)
    return model


def plain_lm(model, tokenizer, batch_size=4):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")


def answers(lm, subjects, shots=5) -> list[list[tuple[float, bool]]]:
    """The answer to each question: (log-likelihood, greedy) of the four letters."""
    samples = harness.evaluate(lm, subjects, shots)["samples"]
    return [sample["filtered_resps"] for name in sorted(samples) for sample in samples[name]]


def assert_same(ours, plain):
    assert len(ours) == len(plain) > 0
    for mine, theirs in zip(ours, plain, strict=True):
        assert [logp for logp, _ in mine] == pytest.approx([logp for logp, _ in theirs], abs=1e-4)
        assert [greedy for _, greedy in mine] == [greedy for _, greedy in theirs]
        assert max(range(4), key=lambda i: mine[i][0]) == max(range(4), key=lambda i: theirs[i][0])


# Shared prefixes


@pytest.mark.parametrize("max_positions", LENGTHS.values(), ids=LENGTHS)
def test_answers_equal_hflm(subjects, tokenizer, max_positions):
    model = micro(tokenizer, max_positions)
    ours, plain = shared_prefix_lm(model, tokenizer, 4, HARDWARE), plain_lm(model, tokenizer)
    scores = answers(ours, subjects)
    assert_same(scores, answers(plain, subjects))
    # The fixture can tell models apart: not all choices are the same letter.
    assert len({max(range(4), key=lambda i, choices=choices: choices[i][0]) for choices in scores}) > 1
    requests = 4 * harness.questions(subjects)
    assert {1024: ours.cut == 0, 330: 0 < ours.cut < requests, 160: ours.cut == requests}[max_positions]


def test_batching_does_not_change_answers(subjects, tokenizer):
    model = micro(tokenizer, 400)
    alone, together = (answers(shared_prefix_lm(model, tokenizer, size, HARDWARE), subjects) for size in (1, 64))
    assert_same(alone, together)


def test_a_template_is_compiled_once(subjects, monkeypatch):
    """Not for each question, as the harness does."""
    compiled, whole = [], jinja2.Environment.compile
    monkeypatch.setattr(
        jinja2.Environment, "compile", lambda env, source, *more: compiled.append(source) or whole(env, source, *more)
    )
    for task in harness.tasks(subjects, 5)["tasks"].values():
        task.build_all_requests()
        assert len(task.instances) == 4 * 6
    assert len(compiled) == len(set(compiled))


def test_prefix_is_prefilled_once(subjects, tokenizer):
    """The model runs the five solved questions once for a subject, not once for a question."""
    model = micro(tokenizer, 1024)
    read = []
    model.register_forward_pre_hook(lambda _, __, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    answers(shared_prefix_lm(model, tokenizer, 64, HARDWARE), subjects)
    assert [shape[0] for shape in read] == [1, 6] * len(subjects)
    prefixes, batches = read[::2], read[1::2]
    assert all(batch[1] < prefix[1] / 2 for prefix, batch in zip(prefixes, batches, strict=True))


def test_choices_of_several_tokens(subjects):
    """A vocabulary of bytes has no " A": the letter is two tokens, of which the first is part of the input."""
    tokenizer = train_tokenizer(["a"], 300, 4096)
    assert len(tokenizer.encode(" A")) == 2
    model = micro(tokenizer, 4096)
    few = {name: subjects[name] for name in ("astronomy", "nutrition")}
    assert_same(answers(shared_prefix_lm(model, tokenizer, 4, HARDWARE), few), answers(plain_lm(model, tokenizer), few))


def test_continuations_of_unequal_length(tokenizer):
    """Not of MMLU, but possible in the harness; short and long contexts, with and without a common prefix."""
    model = micro(tokenizer, 64)
    contexts = ["What is", "What is the capital of Japan?", "What is the capital of Canada?", "Which", "Q" * 200]
    requests = [
        ((context, more), tokenizer.encode(context), tokenizer.encode(more))
        for context in contexts
        for more in (" A", " the largest planet", " Tokyo, of course", " A")
    ]
    ours = shared_prefix_lm(model, tokenizer, 3, HARDWARE)._loglikelihood_tokens(requests, disable_tqdm=True)
    plain = plain_lm(model, tokenizer)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [logp for logp, _ in ours] == pytest.approx([logp for logp, _ in plain], abs=1e-4)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in plain]
    assert shared_prefix_lm(model, tokenizer, 3, HARDWARE)._loglikelihood_tokens([]) == []


def test_unequal_continuations_of_an_input(tokenizer):
    """An input contains its continuation except the last token, so that contexts of different length can share it."""
    model = micro(tokenizer, 64)
    ids = tokenizer.encode("Which planet is the largest?")
    requests = [(("", ""), ids[:-2], ids[-2:]), (("", ""), ids[:-1], ids[-1:]), (("", ""), ids[:-1], [7])]
    with torch.no_grad():
        logps = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
    last = logps[-1, ids[-1]].item()
    expected = [logps[-2, ids[-2]].item() + last, last, logps[-1, 7].item()]
    scores = shared_prefix_lm(model, tokenizer, 3, HARDWARE)._loglikelihood_tokens(requests, disable_tqdm=True)
    assert [logp for logp, _ in scores] == pytest.approx(expected, abs=1e-4)


def test_adapter_is_scored_unmerged(subjects, tokenizer):
    from peft import LoraConfig, get_peft_model

    base = micro(tokenizer, 1024)
    before = answers(shared_prefix_lm(base, tokenizer, 4, HARDWARE), subjects)
    model = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).eval()
    ours = answers(shared_prefix_lm(model, tokenizer, 4, HARDWARE), subjects)
    assert_same(ours, answers(plain_lm(model, tokenizer), subjects))
    assert ours != before


SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = SIZE | {"num_key_value_heads": 1, "max_position_embeddings": 512}
# A sliding window shorter than the prompts; learned positions; some recurrent layers; only recurrent layers.
ARCHITECTURES = {
    "Mistral": ({**GROUPED, "sliding_window": 48}, True, True),
    "GPT2": ({"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 512}, True, True),
    "Bert": ({**SIZE, "is_decoder": True}, True, True),
    "Lfm2": ({**GROUPED, "layer_types": ["conv", "full_attention"]}, True, False),
    "Mamba": ({"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}, False, False),
}


@pytest.mark.parametrize(("name", "values", "runs", "shares"), [(k, *v) for k, v in ARCHITECTURES.items()])
def test_other_architectures(subjects, tokenizer, name, values, runs, shares):
    import transformers

    head = {"GPT2": "LMHeadModel"}.get(name, "ForCausalLM")
    transformers.set_seed(5)
    config = getattr(transformers, f"{name}Config")(**values, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2)
    kind = decoder_class() if name == "Bert" else getattr(transformers, f"{name}{head}")
    model = enlarge(kind(config).eval())
    assert (can_share(model), has_kv_cache(model)) == (runs, shares)
    few = {name: harness.Subject(subjects[name].dev, subjects[name].test[:3]) for name in ("astronomy", "nutrition")}
    assert_same(answers(shared_prefix_lm(model, tokenizer, 4, HARDWARE), few), answers(plain_lm(model, tokenizer), few))


def test_prompt_tuning_uses_hflm(subjects, tokenizer):
    from peft import PromptTuningConfig, TaskType, get_peft_model

    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=3)
    model = get_peft_model(micro(tokenizer, 1024), config).eval()
    assert not can_share(model)
    few = {"nutrition": harness.Subject(subjects["nutrition"].dev, subjects["nutrition"].test[:3])}
    assert_same(answers(shared_prefix_lm(model, tokenizer, 4, HARDWARE), few), answers(plain_lm(model, tokenizer), few))


def row(text: str) -> Row:
    return Row(tuple(map(ord, text)), [(0, [0])])


def parts(rows):
    return [
        (cluster.shared, sorted("".join(map(chr, row.tokens)) for row in cluster.rows)) for cluster in clusters(rows)
    ]


def test_clusters_by_prefix():
    rows = [row(text) for text in ("aaaaaaaa-one", "bbbbbbbb-one", "aaaaaaaa-two", "bbbbbbbb-two", "ac")]
    assert parts(rows) == [
        (9, ["aaaaaaaa-one", "aaaaaaaa-two"]),
        (9, ["bbbbbbbb-one", "bbbbbbbb-two"]),
        (0, ["ac"]),
    ]


def test_prefix_excludes_the_last_token():
    """Its logits are needed, so that it runs in the batch, even where a row is the prefix of another."""
    assert parts([row("aaaa"), row("aaaab")]) == [(3, ["aaaa", "aaaab"])]
    assert parts([row("a"), row("ab")]) == [(0, ["a", "ab"])]
    assert clusters([]) == []


# Prompts and groups


def test_prompt_equals_the_harness(subjects, tmp_path):
    """Against the harness's own task, which reads the rows from Parquet."""
    import lm_eval
    from datasets import Dataset
    from lm_eval.tasks import TaskManager

    original = Path(lm_eval.__file__).parent / "tasks/mmlu/default/mmlu_nutrition.yaml"
    files = {}
    for split in ("dev", "test"):
        files[split] = str(tmp_path / f"{split}.parquet")
        Dataset.from_list([asdict(q) for q in getattr(subjects["nutrition"], split)]).to_parquet(files[split])
    spec = {"dataset_path": "parquet", "dataset_name": None, "num_fewshot": 5, "include": str(original)}
    spec["dataset_kwargs"] = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    (tmp_path / "nutrition.yaml").write_text(json.dumps(spec), encoding="utf-8")
    plain = TaskManager(include_path=tmp_path, include_defaults=False).load(["mmlu_nutrition"])["tasks"]
    ours = harness.tasks(subjects, shots=5)["tasks"]
    prompts = []
    for task in (plain["mmlu_nutrition"], ours["mmlu_nutrition"]):
        task.build_all_requests()
        prompts.append([(request.arguments, request.doc_id, request.idx) for request in task.instances])
        assert task.VERSION == 1.0
    assert prompts[0] == prompts[1]
    (context, letter), _, _ = prompts[1][1]
    first = subjects["nutrition"].test[0]
    assert context.startswith("The following are multiple choice questions (with answers) about nutrition.\n\n")
    assert context.count("\nAnswer: ") == 5 and letter == " B"
    lines = [first.question, *(f"{name}. {text}" for name, text in zip("ABCD", first.choices, strict=True)), "Answer:"]
    assert context.endswith("\n\n" + "\n".join(lines))


class Oracle:
    """A model that answers the first n questions of a subject correctly, and no others."""

    def __init__(self, subjects, right):
        from lm_eval.api.model import LM

        rank = {q.question: (i, q.answer) for subject in subjects.values() for i, q in enumerate(subject.test)}
        name_of = {q.question: name for name, subject in subjects.items() for q in subject.test}

        class Known(LM):
            def loglikelihood(self, requests):
                answers = []
                for context, letter in (request.args for request in requests):
                    question = context.split("\n\n")[-1].split("\nA. ")[0]
                    place, answer = rank[question]
                    chosen = answer if place < right[name_of[question]] else (answer + 1) % 4
                    answers.append((0.0 if letter.strip() == "ABCD"[chosen] else -1.0, False))
                return answers

            def loglikelihood_rolling(self, requests):
                raise NotImplementedError

            def generate_until(self, requests):
                raise NotImplementedError

        self.lm = Known()


def test_groups_are_means_over_questions():
    """Computed by hand: the accuracy of a group is not the mean of its subjects' accuracies, whose sizes differ."""
    subjects = harness.read(SAMPLE, shots=5, limit=None)
    subjects["astronomy"] = replace(subjects["astronomy"], test=subjects["astronomy"].test[:4])
    right = dict(zip(subjects, (4, 5, 10, 20, 0), strict=True))
    metrics = harness.metrics(harness.evaluate(Oracle(subjects, right).lm, subjects, 5))
    assert metrics["acc_stem"] == pytest.approx(100 * (4 + 5) / (4 + 20))
    assert metrics["acc_social_sciences"] == pytest.approx(50)
    assert (metrics["acc_other"], metrics["acc_humanities"]) == (100, 0)
    assert metrics["acc"] == pytest.approx(100 * (4 + 5 + 10 + 20) / 84)
    # Of a subject: the standard deviation with n - 1, divided by the square root of n.
    assert metrics["acc_social_sciences_stderr"] == pytest.approx(100 * math.sqrt(0.25 * 20 / 19 / 20))
    assert (metrics["acc_other_stderr"], metrics["acc_humanities_stderr"]) == (0, 0)
    # Of a group: the pooled variance within its subjects.
    within = {"stem": 20 * 0.25 * 0.75, "all": 20 * 0.25 * 0.75 + 20 * 0.25}
    assert metrics["acc_stem_stderr"] == pytest.approx(100 * math.sqrt(within["stem"] / (24 - 2) / 24))
    assert metrics["acc_stderr"] == pytest.approx(100 * math.sqrt(within["all"] / (84 - 5) / 84))


class Typist(Oracle):
    """A model to which each byte of a continuation after its first space costs a nat, and of a right one half a nat."""

    def __init__(self, subjects):
        super().__init__(subjects, {})
        right = {q.question: q for subject in subjects.values() for q in subject.test}

        def loglikelihood(requests):
            rates = []
            for context, text in (request.args for request in requests):
                question = right[context.split("\n\n")[-1].removeprefix("Question: ").removesuffix("\nAnswer:")]
                rates.append((text, 0.5 if text == f" {question.choices[question.answer]}" else 1.0))
            return [(-rate * len(text[1:].encode()), False) for text, rate in rates]

        self.lm.loglikelihood = loglikelihood


def test_cloze_scores_the_text_of_each_choice():
    """By hand: the accuracy goes by the sum, which favours short choices, and the margin by the byte."""
    question = harness.Question(" Who? ", ("a dé", "b", "a hero of old", "me"), 0)
    other = harness.Question("Which one?", ("a hero of old", "b", "me", "c"), 3)
    subjects = {"nutrition": harness.Subject((question, other), (question, other))}
    results = harness.evaluate(Typist({"nutrition": strip(subjects["nutrition"])}).lm, subjects, 2, "cloze")
    answers = harness.answers(results, subjects, "cloze")
    assert answers["id"].tolist() == ["nutrition/0", "nutrition/1"]
    # "a dé" is five bytes at half a nat, more than the one byte of "b".
    assert answers["acc"].tolist() == [0.0, 100.0]
    assert answers["answer_logp"].tolist() == [-0.5, -0.5] and answers["answer_margin"].tolist() == [0.5, 0.5]
    assert harness.metrics(results)["acc"] == harness.metrics(results)["acc_other"] == 50
    assert harness.versions(results) == "group 2, task 1.0"
    context, text = results["samples"]["mmlu_nutrition_continuation"][0]["arguments"][0]
    assert context == (
        "The following are questions (with answers) about nutrition.\n\n"
        "Question: Who?\nAnswer: a dé\n\nQuestion: Which one?\nAnswer: c\n\nQuestion: Who?\nAnswer:"
    )
    assert text == " a dé"


def strip(subject):
    return replace(subject, test=tuple(replace(q, question=q.question.strip()) for q in subject.test))


def test_letters_by_question(subjects):
    right = dict.fromkeys(subjects, 3)
    answers = harness.answers(harness.evaluate(Oracle(subjects, right).lm, subjects, 5), subjects, "letters")
    assert answers["id"].tolist() == [f"{name}/{i}" for name in subjects for i in range(6)]
    assert answers["acc"].tolist() == [100.0, 100.0, 100.0, 0.0, 0.0, 0.0] * len(subjects)
    # Of a letter the likeliest choice has 0 nats and the others -1: all wrong, or one of the three wrong ones.
    assert answers["answer_logp"].tolist() == [0.0, 0.0, 0.0, -1.0, -1.0, -1.0] * len(subjects)
    assert answers["answer_margin"].tolist() == pytest.approx([1.0, 1.0, 1.0, *[-1 / 3] * 3] * len(subjects))


def test_cloze_equals_hflm(subjects, tokenizer):
    model = micro(tokenizer, 1024)
    few = {name: harness.Subject(subjects[name].dev, subjects[name].test[:3]) for name in ("astronomy", "nutrition")}
    ours, plain = shared_prefix_lm(model, tokenizer, 4, HARDWARE), plain_lm(model, tokenizer)
    found, expected = (
        harness.answers(harness.evaluate(lm, few, 2, "cloze"), few, "cloze").drop(columns="id") for lm in (ours, plain)
    )
    assert found.to_numpy() == pytest.approx(expected.to_numpy(), abs=1e-4)
    assert len(set(found["answer_margin"])) == 6


def test_groups_of_cloze_equal_those_of_letters(subjects):
    found = harness.tasks(subjects, 0, "cloze")["group_map"]
    assert {task: group for group in found["mmlu_continuation"] for task in found[group]} == {
        f"mmlu_{subject}_continuation": group.replace("_", " ") for subject, group in GROUP_OF.items()
    }
    with pytest.raises(DataError, match=r"^'cooking' is not a subject of MMLU: .*abstract_algebra, anatomy"):
        harness.tasks({"cooking": subjects["nutrition"]}, 5, "cloze")


def test_groups_without_subjects_are_left_out(subjects):
    few = {"nutrition": subjects["nutrition"]}
    metrics = harness.metrics(harness.evaluate(Oracle(few, {"nutrition": 3}).lm, few, 5))
    assert set(metrics) == {"acc", "acc_stderr", "acc_other", "acc_other_stderr"}
    assert metrics["acc"] == metrics["acc_other"] == 50


def test_groups_equal_the_harness(subjects):
    groups = harness.tasks(subjects, 0)["group_map"]
    assert set(groups["mmlu"]) == {f"mmlu_{name}" for name in harness.GROUPS}
    assert {task: group for group in groups["mmlu"] for task in groups[group]} == {
        f"mmlu_{subject}": f"mmlu_{group}" for subject, group in GROUP_OF.items()
    }


def test_unknown_subject(subjects):
    with pytest.raises(DataError, match=r"^'cooking' is not a subject of MMLU: .*abstract_algebra.*world_religions"):
        harness.tasks({"cooking": subjects["nutrition"]}, 5)


# Rows


def test_sample_rows():
    subjects = harness.read(SAMPLE, shots=5, limit=None)
    assert list(subjects) == sorted(GROUP_OF)
    questions = [q for subject in subjects.values() for q in subject.dev + subject.test]
    assert len({q.question for q in questions}) == len(questions) == 125
    for subject in subjects.values():
        assert (len(subject.dev), len(subject.test)) == (5, 20)
        assert Counter(q.answer for q in subject.test) == dict.fromkeys(range(4), 5)
        assert len({q.answer for q in subject.dev}) >= 3
    for q in questions:
        assert len(set(q.choices)) == 4 and q.question.strip() == q.question
        # The correct choice does not stand out by its length.
    longest = sum(len(q.choices[q.answer]) == max(map(len, q.choices)) for q in questions)
    assert longest < 0.5 * len(questions)


def test_sample_arithmetic_is_correct():
    """The answers to the questions of arithmetic."""
    answers = {q.question: q.choices[q.answer] for q in harness.read(SAMPLE, 5, None)["elementary_mathematics"].test}
    assert answers["What is 9 times 7?"] == str(9 * 7)
    assert answers["What is 100 minus 37?"] == str(100 - 37)
    assert answers["What is 25% of 80?"] == str(80 // 4)
    assert answers["What is 144 divided by 12?"] == str(144 // 12)
    assert answers["What is the remainder when 29 is divided by 6?"] == str(29 % 6)
    assert answers["What is 6 squared?"] == str(6**2)


def test_real_rows(corpora_dir):
    if not (corpora_dir / "mmlu").is_dir():
        pytest.skip("no mmlu in the folder of corpora")
    subjects = harness.read(corpora_dir / "mmlu", shots=5, limit=None)
    assert (len(subjects), harness.questions(subjects)) == (57, 14042)
    assert all(len(subject.dev) == 5 for subject in subjects.values())
    loaded = harness.tasks(
        {name: harness.Subject(subject.dev, subject.test[:2]) for name, subject in subjects.items()}, 5
    )
    sizes = {name.removeprefix("mmlu_"): len(tasks) for name, tasks in loaded["group_map"].items()}
    assert sizes == {"mmlu": 4, "stem": 19, "other": 13, "social_sciences": 12, "humanities": 13}


GOOD = 'Which?,1,2,3,4,A\n"Quoted, with\na line break?"," a",b,c,d,D\n'


@pytest.fixture
def folder(tmp_path):
    for split in ("dev", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / f"nutrition_{split}.csv").write_text(GOOD, encoding="utf-8", newline="")
    return tmp_path


def test_rows_are_not_changed(folder):
    subject = harness.read(folder, shots=2, limit=None)["nutrition"]
    assert subject.dev == subject.test
    assert subject.test[1] == harness.Question("Quoted, with\na line break?", (" a", "b", "c", "d"), 3)
    (folder / "test/nutrition_test.csv").write_text("\ufeff" + GOOD.replace("\n", "\r\n", 1) + "\n", newline="")
    assert harness.read(folder, shots=2, limit=None)["nutrition"].test == subject.test


def test_limit_takes_the_first_questions(folder):
    rows = GOOD + "Third?,1,2,3,4,B\n"
    (folder / "test/nutrition_test.csv").write_text(rows, encoding="utf-8", newline="")
    whole, part = (harness.read(folder, 0, limit)["nutrition"].test for limit in (None, 2))
    assert part == whole[:2] and len(whole) == 3


def test_digest(folder):
    before = harness.digest(harness.read(folder, 2, None))
    path = folder / "test/nutrition_test.csv"
    path.write_text(GOOD.replace("Which?", '"Which?"'), encoding="utf-8", newline="")
    assert harness.digest(harness.read(folder, 2, None)) == before
    path.write_text(GOOD.replace("Which?", "Who?"), encoding="utf-8", newline="")
    assert harness.digest(harness.read(folder, 2, None)) != before


BROKEN = {
    "5 columns": (GOOD + "Q?,1,2,3,A\n", r"test\.csv:4: 5 columns, expected question, A, B, C, D, letter: 'Q\?'$"),
    "7 columns": (GOOD + "Q?,1,2,3,4,5,A\n", r"test\.csv:4: 7 columns"),
    "letter": ("Q?,1,2,3,4,E\n" + GOOD, r"test\.csv:1: the correct choice is 'E', expected A, B, C or D$"),
    "two letters": ("Q?,1,2,3,4,AB\n" + GOOD, r"test\.csv:1: the correct choice is 'AB'"),
    "header": ("question,A,B,C,D,answer\n" + GOOD, r"test\.csv:1: the correct choice is 'answer'"),
    "empty question": (GOOD + " ,1,2,3,4,A\n", r"test\.csv:4: column question is empty$"),
    "empty choice": (GOOD + "Q?,1,2,,4,A\n", r"test\.csv:4: column C is empty$"),
    "quote left open": (GOOD + '"Q?,1,2,3,4,A\n', r"test\.csv:4: no valid csv: unexpected end of data$"),
    "no UTF-8": (GOOD.encode() + b"\xe9?,1,2,3,4,A\n", r"test\.csv:4: not UTF-8 at byte "),
    "one row": ("Q?,1,2,3,4,A\n", r"test\.csv: 1 rows, expected at least 2"),
    "empty": ("", r"test\.csv: 0 rows, expected at least 2"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_malformed_rows(folder, content, message):
    path = folder / "test/nutrition_test.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as error:
        harness.read(folder, 2, None)
    assert str(error.value).startswith(str(path))


def test_missing_rows(folder):
    with pytest.raises(DataError, match=r"nutrition_dev\.csv: 2 rows, expected at least 5 \(mmlu\.shots = 5\)$"):
        harness.read(folder, 5, None)
    (folder / "dev/nutrition_dev.csv").unlink()
    with pytest.raises(DataError, match=r"dev/nutrition_dev\.csv is missing: a subject needs"):
        harness.read(folder, 2, None)
    shutil.copy(folder / "test/nutrition_test.csv", folder / "dev/anatomy_dev.csv")
    with pytest.raises(DataError, match=r"test/anatomy_test\.csv is missing"):
        harness.read(folder, 2, None)
    with pytest.raises(DataError, match=r"none/test holds no <subject>_test\.csv"):
        harness.read(folder / "none", 2, None)


# The stage


@pytest.fixture
def project(tmp_path, monkeypatch, tokenizer):
    """A folder with a base model, an adapter on it and the sample rows."""
    from peft import LoraConfig, get_peft_model

    base = micro(tokenizer, 400)
    base.save_pretrained(tmp_path / "models/base")
    tokenizer.save_pretrained(tmp_path / "models/base")
    record = {"name": "micro", "source": "made"}
    (tmp_path / "models/base/base.json").write_text(json.dumps(record), encoding="utf-8")
    torch.manual_seed(1)
    adapter = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    adapter.save_pretrained(tmp_path / "models/sft")
    shutil.copytree(SAMPLE, tmp_path / "data/sample/mmlu")
    monkeypatch.chdir(tmp_path)
    params = factory.params(mmlu=factory.mmlu(shots=5, limit=6))
    return tmp_path, params


def test_stage_is_deterministic(project):
    folder, params = project
    names = ["metrics/mmlu/base.json", "metrics/mmlu/base.signature.json", "data/scores/mmlu/base.parquet"]
    written = []
    for _ in range(2):
        stage.main("base", params)
        written.append([(folder / name).read_bytes() for name in names])
    assert written[0] == written[1]
    metrics, signature = (json.loads(text) for text in written[0][:2])
    groups = ("", "_humanities", "_other", "_social_sciences", "_stem")
    accuracies = [f"acc{group}{end}" for group in groups for end in ("", "_stderr")]
    assert list(metrics) == [*accuracies, "answer_logp", "answer_margin"]
    assert all(isinstance(value, float) and round(value, 4) == value for value in metrics.values())
    assert all(0 <= metrics[name] <= 100 for name in accuracies)
    answers = pd.read_parquet(folder / names[2])
    assert len(answers) == 30 and (answers["answer_logp"] < 0).all()
    for name in harness.ANSWER_COLUMNS:
        assert metrics[name] == pytest.approx(answers[name].mean(), abs=1e-4)
    # 30 questions of equal weight.
    assert metrics["acc"] * 30 / 100 == pytest.approx(round(metrics["acc"] * 30 / 100), abs=1e-4)
    assert all(isinstance(value, str) for value in signature.values())
    assert {
        name: signature[name] for name in ("lm_eval", "mmlu", "form", "shots", "batch_size", "questions", "commit")
    } == {
        "lm_eval": "0.4.13",
        "mmlu": "group 2, task 1.0",
        "form": "letters",
        "shots": "5",
        "batch_size": "4",
        "questions": "30",
        "commit": "none",
    }
    assert signature["adapter"] == "none" and len(signature["rows"].split()[-1]) == 64


def test_paired_intervals_of_questions(project):
    """Of an adapter against the base model; a variant without a model has none, nor do differences to it."""
    folder, params = project
    params = replace(params, mmlu=replace(params.mmlu, form="cloze", shots=1), context=factory.context(targets="every"))
    for variant in ("base", "sft"):
        stage.main(variant, params)
        intervals.main(variant, "mmlu", params)
    base, sft = (json.loads((folder / f"metrics/mmlu/{name}.json").read_text()) for name in ("base", "sft"))
    bounds = json.loads((folder / "metrics/intervals/mmlu/sft.json").read_text())
    for name in harness.ANSWER_COLUMNS:
        assert bounds[f"{name}.diff"] == pytest.approx(sft[name] - base[name], abs=2e-4)
        assert bounds[f"{name}.low"] <= sft[name] <= bounds[f"{name}.high"]
    # Each question is drawn by itself, though the targets of dialogues are every reply.
    assert bounds["answer_logp.low"] < bounds["answer_logp.high"]
    theirs = params.variants | {"base": factory.variant(model="theirs.jsonl")}
    for variant in ("base", "sft"):
        if variant == "base":
            stage.main(variant, replace(params, variants=theirs))
        intervals.main(variant, "mmlu", replace(params, variants=theirs))
    assert json.loads((folder / "metrics/intervals/mmlu/base.json").read_text()) == {}
    alone = json.loads((folder / "metrics/intervals/mmlu/sft.json").read_text())
    assert alone == {name: value for name, value in bounds.items() if ".diff" not in name}
    (folder / "data/scores/mmlu/sft.parquet").unlink()
    with pytest.raises(DataError, match=r"sft\.parquet is missing: run `dvc repro mmlu@sft`"):
        intervals.main("sft", "mmlu", params)


def test_stage_with_an_adapter(project):
    folder, params = project
    stage.main("sft", params)
    signature = json.loads((folder / "metrics/mmlu/sft.signature.json").read_text())
    assert signature["adapter"] == "models/sft, not merged"
    base = Path("models/base")
    model = load_variant(base, Path("models/sft"), params.hardware, merge=False)
    assert any("lora_A" in name for name, _ in model.named_parameters()) and not model.training
    assert not any(
        "lora" in name for name, _ in load_variant(base, base, params.hardware, merge=False).named_parameters()
    )


def test_stage_with_an_unknown_variant(project):
    _, params = project
    with pytest.raises(ParamsError, match=r"^'dpo' is none of variants: base, sft, sft-dpo$"):
        stage.main("dpo", params)


def test_stage_with_a_corpus_folder(project):
    folder, params = project
    shutil.move(folder / "data/sample/mmlu", folder / "data/raw/mmlu")
    stage.main("base", replace(params, mmlu=factory.mmlu(corpus="mmlu")))
    signature = json.loads((folder / "metrics/mmlu/base.signature.json").read_text())
    assert signature["rows"].startswith("mmlu, sha256 ") and signature["questions"] == "10"
    assert signature["shots"] == "1"
