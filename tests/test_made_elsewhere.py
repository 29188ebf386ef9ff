"""Replies that were made elsewhere: reading their files, `attune score`, and a file as a variant of the pipeline."""

import json
import re
from dataclasses import replace
from pathlib import Path

import factory
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import ROOT, project, random_classifiers
from test_pipeline import resolved

import stages.card
import stages.evaluate
import stages.generate
import stages.intervals
import stages.mmlu
import stages.references
import stages.report
import stages.scores
from attune.classifiers.epitome import levels
from attune.classifiers.epitome.model import MECHANISMS
from attune.config.params import compose, load
from attune.data.dialogue import Dialogue, Example, Turn, context_key, normalise, write_dialogues
from attune.data.examples import read_examples
from attune.generation.answer import write_replies
from attune.generation.made_elsewhere import OwnReply, match, read, records
from attune.report.first_screen import first_screen
from attune.report.read import DPO_CURVES
from attune.report.results import dpo_curve_file, sft_curve_file
from attune.runtime.errors import DataError, ParamsError, UserError
from attune.runtime.io import sha256_of, write_json, write_text
from attune.scoring.text import overlap
from attune.tools import chat, push, rate
from attune.tools.score import column_names, main

EXAMPLES = ROOT / "examples/replies"
OVERRIDES = [
    "model=tiny", "encoder=tiny", "compute.threads=1", "compute.dtype=fp32", "evaluate.resamples=100",
    "generate.limit=12", "~variants.sft", "~variants.sft-dpo",
]  # fmt: skip


@pytest.fixture(scope="module")
def composed(tmp_path_factory):
    """A folder with params.yaml of the tiny encoder."""
    folder = tmp_path_factory.mktemp("composed")
    project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        compose(OVERRIDES)
    return folder


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    return random_classifiers(tmp_path_factory.mktemp("classifiers") / "epitome")


@pytest.fixture(autouse=True)
def run(composed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text((composed / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")


def write(path, rows):
    """Rows in the format of the ending."""
    path = Path(path)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(rows).to_csv(path, index=False)
    else:
        pd.DataFrame(rows).to_parquet(path)
    return path


def chat_of(*texts):
    return [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(texts)]


def scored(*arguments):
    """The JSON of `attune score`."""
    main([*map(str, arguments), "-o", "out/scores.json"])
    return json.loads(Path("out/scores.json").read_text(encoding="utf-8"))


ROWS = [
    {"id": "a", "context": chat_of("My dog died."), "reply": "I am sorry.", "reference": "I am so sorry.",
     "label": "sad"},
    {"id": "b", "context": chat_of("Hi.", "Hello!", "I won, you know."), "reply": "", "reference": "Great!",
     "label": ""},
    {"id": "c", "context": chat_of("Oh 😀"), "reply": "Since when?\nTell me.", "reference": None, "label": None},
]  # fmt: skip


def as_cells(rows):
    """As a csv has it: contexts are JSON."""
    return [{**row, "context": json.dumps(row["context"], ensure_ascii=False)} for row in rows]


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv", "r.parquet", "R.JSONL"])
def test_every_format_gives_the_same_rows(name):
    rows, dropped = read(write(name.lower(), as_cells(ROWS) if name == "r.csv" else ROWS))
    assert [(row.id, row.reply, row.reference, row.label) for row in rows] == [
        ("a", "I am sorry.", "I am so sorry.", "sad"),
        ("b", "", "Great!", None),
        ("c", "Since when?\nTell me.", None, None),
    ]
    assert [turn.text for turn in rows[1].context] == ["Hi.", "Hello!", "I won, you know."]
    assert rows[0].where in (f"{name.lower()}:1", f"{name.lower()}:2", f"{name.lower()}, row 1")
    assert not +dropped


def test_what_is_left_out_of_contexts_is_counted_and_turns_of_one_role_are_joined():
    spoken = [("system", "Be kind."), ("assistant", "Hello."), ("user", "Hi."), ("user", "I failed.")]
    context = [{"role": role, "content": text} for role, text in spoken]
    rows, dropped = read(write("r.jsonl", [{"context": context, "reply": "Oh."}]))
    assert rows[0].context == (Turn("user", "Hi. I failed."),)
    assert +dropped == {"system messages": 1, "opening assistant turns": 1}


def test_the_pipelines_own_replies_and_plain_texts_are_read():
    context = [{"role": "user", "text": "My dog died.", "act": None}]
    own = [{"id": "d:1", "context": context, "reply": "Oh.", "reference": "No!", "rejected": None}]
    plain = [{"id": 7, "context": "My dog died!", "reply": "Oh."}]
    keys = [context_key(read(write(f"{i}.parquet", rows))[0][0].context) for i, rows in enumerate((own, plain))]
    assert keys == ["my dog died"] * 2
    # What begins with a bracket is text, too.
    assert read(write("r.csv", [{"context": "[sighs] No.", "reply": "Oh."}]))[0][0].context[0].text == "[sighs] No."


def test_columns_with_other_names():
    path = write("r.csv", [{"question": "Hi.", "answer": "Oh.", "reply": "not this one"}])
    row = read(path, {"reply": "answer", "context": "question"})[0][0]
    assert (row.reply, row.context[0].text) == ("Oh.", "Hi.")
    with pytest.raises(DataError, match=r"r\.csv:2: no column output; found question, answer"):
        read(write("r.csv", [{"question": "Hi.", "answer": "Oh."}]), {"reply": "output"})


GOOD = {"context": chat_of("Hi."), "reply": "Oh."}


def jsonl(*values):
    return "".join(value if isinstance(value, str) else json.dumps(value) + "\n" for value in values).encode()


def second(**values):
    """A file whose second row is wrong."""
    return jsonl(GOOD, GOOD | values)


def parquet(table, cut=0):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    content = sink.getvalue().to_pybytes()
    return content[: len(content) - cut]


DUPLICATE = pa.table([pa.array(["a"]), pa.array(["b"])], names=["reply", "reply"])
BINARY = pa.table({"reply": pa.array([b"\xff\xfe"], pa.binary())})
NO_UTF8 = pa.table(
    {"reply": pa.StringArray.from_buffers(1, pa.py_buffer(np.array([0, 2], "int32")), pa.py_buffer(b"\xff\xfe"))}
)
CSV = b"context,reply,reference\nHi.,Oh.,No.\n"
# File, content, and what its error says, which begins with the place.
BROKEN = [
    ("r.txt", b"Oh.\n", "r.txt: the ending is none of .jsonl, .json, .csv, .parquet"),
    ("r.tsv", b"reply\nOh.\n", "r.tsv: the ending is none of"),
    ("r", b"reply\nOh.\n", "r: the ending is none of"),
    ("r.jsonl.gz", b"\x1f\x8b", "r.jsonl.gz: the ending is none of"),
    ("missing/r.jsonl", None, "missing/r.jsonl is missing: name a file of replies"),
    ("missing/r.parquet", None, "missing/r.parquet is missing: name a file of replies"),
    ("r.jsonl", b"", "r.jsonl: there are no rows"),
    ("r.jsonl", b"\n \n", "r.jsonl: there are no rows"),
    ("r.json", b"[]", "r.json: there are no rows"),
    ("r.csv", b"", "r.csv: there are no rows"),
    ("r.csv", b"context,reply\n", "r.csv: there are no rows"),
    ("r.parquet", parquet(pa.table({"reply": pa.array([], pa.string())})), "r.parquet: there are no rows"),
    ("r.jsonl", jsonl(GOOD, '{"reply": "Oh."\n'), "r.jsonl:2: no valid JSON: "),
    ("r.jsonl", jsonl(GOOD, "{'reply': 'Oh.'}\n"), "r.jsonl:2: no valid JSON: Expecting property name"),
    ("r.jsonl", jsonl(GOOD, '"Oh."\n'), "r.jsonl:2: 'Oh.' is no JSON object"),
    ("r.jsonl", jsonl(GOOD, '["Oh."]\n'), "is no JSON object"),
    ("r.jsonl", jsonl(GOOD, "null\n"), "r.jsonl:2: null is no JSON object"),
    ("r.jsonl", jsonl(GOOD, '{"reply": "a", "reply": "b"}\n'), "r.jsonl:2: the key 'reply' is there twice"),
    ("r.jsonl", jsonl(GOOD, "[" * 100_000 + "\n"), "r.jsonl:2: no valid JSON: "),
    ("r.jsonl", jsonl(GOOD, '{"reply": ' + "9" * 5000 + "}\n"), "r.jsonl:2: no valid JSON: "),
    ("r.jsonl", json.dumps([GOOD], indent=1).encode(), "r.jsonl:1: no valid JSON: "),
    ("r.jsonl", jsonl(GOOD, "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1")), "r.jsonl:2: no valid JSON: "),
    ("r.jsonl", jsonl(GOOD) + b'{"reply": "caf\xe9"}\n', "r.jsonl:2: not UTF-8 at byte"),
    ("r.jsonl", jsonl(GOOD).decode().encode("utf-16"), "r.jsonl:1: not UTF-8 at byte 0"),
    ("r.jsonl", jsonl(GOOD) + b'{"reply": "\x00"}\n', "r.jsonl:2: a NUL at byte"),
    ("r.json", jsonl(GOOD), " is no list of objects; with an object a line it is .jsonl"),
    ("r.json", jsonl(GOOD, GOOD), "r.json:2: no valid JSON: Extra data"),
    ("r.json", b'{"data": []}', "r.json: {'data': []} is no list of objects"),
    ("r.json", b'[{"reply": "a"},\n "b"]', "r.json, row 2: 'b' is no JSON object"),
    ("r.json", b'[{"reply": "a"},\n {"reply": "b"]', "r.json:2: no valid JSON: "),
    ("r.csv", b"question,answer\nHi.,Oh.\n", "r.csv:2: no column reply; found question, answer (--column"),
    ("r.csv", b"context;reply\nHi.;Oh.\n", "r.csv:2: no column reply; found context;reply"),
    ("r.csv", CSV + b"Hi.,Oh, no.,No.\n", "r.csv:3: 4 fields, but the header has 3: 'Hi.'"),
    ("r.csv", CSV + b"Hi.,Oh.\n", "r.csv:3: 2 fields, but the header has 3"),
    ("r.csv", CSV + b'Hi.,"Oh.,No.\n', "r.csv:3: no valid csv: unexpected end of data"),
    ("r.csv", CSV + b'Hi.,"Oh."!,No.\n', "r.csv:3: no valid csv: "),
    ("r.csv", b"reply,reply\nOh.,No.\n", "r.csv:1: column reply is there twice: reply, reply"),
    ("r.csv", CSV + b",Oh.,No.\n", "r.csv:3: message 1 of context: the text of user should not be empty"),
    ("r.csv", CSV + b'"Hi.\n\nHo.",Oh.,No.\n,Oh.,No.\n', "r.csv:6: message 1 of context: the text of"),
    ("r.csv", CSV + b"\"[{'role': 'user', 'content': 'Hi.'}]\",Oh.,\n", "write it by json.dumps, not by str"),
    ("r.csv", CSV + b'"[{""role"": ""user""",Oh.,\n', "r.csv:3, column context: no valid JSON: "),
    ("r.csv", CSV + b'"[{""role"": ""user""}]",Oh.,\n', "r.csv:3: message 1 of context: no key content or"),
    ("r.csv", b"reply,id\nOh.,1\nNo.,\n", "r.csv:3: id should be a text or a whole number, found ''"),
    ("r.csv", b"reply,id\nOh.,1\nNo.,2\nHm.,1\n", "r.csv:4: id '1' is also that of r.csv:2"),
    ("r.parquet", b"", "r.parquet is no valid parquet file"),
    ("r.parquet", jsonl(GOOD), "r.parquet is no valid parquet file"),
    ("r.parquet", parquet(pa.table({"reply": ["a"]}), cut=9), "r.parquet is no valid parquet file"),
    ("r.parquet", parquet(DUPLICATE), "r.parquet: column reply is there twice"),
    ("r.parquet", parquet(BINARY), "r.parquet, row 1: reply should be a text, found b'"),
    ("r.parquet", parquet(NO_UTF8), "r.parquet is no valid parquet file after row 0: 'utf-8' codec"),
    ("r.parquet", parquet(pa.table({"reply": ["a", None]})), "r.parquet, row 2: reply should be a text, found null"),
    ("r.parquet", parquet(pa.table({"text": ["a"]})), "r.parquet, row 1: no column reply; found text"),
    ("r.parquet", parquet(pa.table({"reply": ["a"], "id": [1.5]})), "r.parquet, row 1: id should be a text or a"),
    ("r.jsonl", jsonl(GOOD, {"context": "Hi.", "output": "Oh."}), "r.jsonl:2: no column reply; found context, output"),
    ("r.jsonl", jsonl(GOOD, {"reply": "Oh."}), "r.jsonl:2: no column context; found reply"),
    ("r.jsonl", second(reply=None), "r.jsonl:2: reply should be a text, found null"),
    ("r.jsonl", second(reply=3), "r.jsonl:2: reply should be a text, found 3"),
    ("r.jsonl", second(reply=["Oh."]), "should be a text"),
    ("r.jsonl", second(reply={"role": "assistant", "content": "Oh."}), "r.jsonl:2: reply should be a text, found {"),
    ("r.jsonl", jsonl(GOOD, '{"context": "Hi.", "reply": "\\ud83d"}\n'), "r.jsonl:2: half of a surrogate pair"),
    ("r.jsonl", second(reference=3), "r.jsonl:2: reference should be a text, found 3"),
    ("r.jsonl", second(reference=["No."]), "should be a text, found ['No.']"),
    ("r.jsonl", second(label=3), "r.jsonl:2: label should be a text, found 3"),
    ("r.jsonl", jsonl(GOOD | {"id": "a"}, GOOD | {"id": "a"}), "r.jsonl:2: id 'a' is also that of r.jsonl:1"),
    ("r.jsonl", jsonl(GOOD | {"id": "1"}, GOOD | {"id": 1}), "r.jsonl:2: id '1' is also that of r.jsonl:1"),
    ("r.jsonl", jsonl(GOOD | {"id": True}), "r.jsonl:1: id should be a text or a whole number, found True"),
    ("r.jsonl", jsonl(GOOD | {"id": None}), "r.jsonl:1: id should be a text or a whole number, found null"),
    ("r.jsonl", second(context=None), "r.jsonl:2: context should be a text or a list of chat messages, found null"),
    ("r.jsonl", second(context={"role": "user"}), "should be a text or a list of chat messages, found {'role'"),
    ("r.jsonl", second(context=[]), "r.jsonl:2: context does not end with a user turn"),
    ("r.jsonl", second(context=chat_of("Hi.", "Oh.")), "r.jsonl:2: context does not end with a user turn"),
    ("r.jsonl", second(context=[{"role": "system", "content": "Be kind."}]), "does not end with a user turn"),
    ("r.jsonl", second(context=["Hi."]), "r.jsonl:2: message 1 of context: expected an object"),
    ("r.jsonl", second(context=[{"role": "tool", "content": "Hi."}]), "role 'tool' is none of system, user,"),
    ("r.jsonl", second(context=[{"role": None, "content": "Hi."}]), "message 1 of context: role null is none of"),
    ("r.jsonl", second(context=chat_of("Hi.", " ", "No.")), "message 2 of context: the text of assistant should"),
    ("r.jsonl", second(context=[{"role": "user", "content": [{"type": "text"}]}]), "a part of the content is 'text'"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "says"), BROKEN, ids=[f"{i}-{row[0]}" for i, row in enumerate(BROKEN)])
def test_a_broken_file_is_one_sentence_with_its_place(name, content, says):
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read(Path(name))
    message = str(error.value)
    assert message.startswith(name) and says in message and "\n" not in message and len(message) < 400


def test_a_folder_is_no_file():
    for name in ("r.jsonl", "r.parquet"):
        Path(name).mkdir()
        with pytest.raises(DataError, match=rf"{name} (cannot be read|is a folder)"):
            read(Path(name))


def test_a_broken_second_file_is_found_before_the_first_is_scored(capsys):
    Path("b.jsonl").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"b\.jsonl:1"):
        main([str(write("a.jsonl", ROWS)), "b.jsonl", "-o", "out.json"])
    assert not Path("out.json").exists() and capsys.readouterr().out == ""


@pytest.mark.parametrize("option", ["reply", "reply=", "output=reply", "=x"])
def test_an_option_that_names_no_column_is_refused(option):
    with pytest.raises(UserError, match="expected COLUMN=NAME once for a column of reply, context"):
        column_names([option])


def test_the_examples_are_scored_and_compared(capsys):
    names = ["--column", "reply=output", "--column", "context=prompt"]
    found = scored(EXAMPLES / "warm.jsonl", EXAMPLES / "curt.csv", *names)
    warm, curt = (one["metrics"] for one in found["files"])
    rows = [row for row in read(EXAMPLES / "warm.jsonl")[0] if row.reference]
    expected = overlap.bleu([row.reply for row in rows], [row.reference for row in rows])
    assert len(rows) == 7
    for name, value in expected.items():
        assert warm[name]["value"] == pytest.approx(value, abs=1e-4)
    assert {name: warm[name]["n"] for name in ("bleu_4", "rouge_l", "bertscore_f1", "dist_2", "reply_words")} == {
        "bleu_4": 7, "rouge_l": 7, "bertscore_f1": 7, "dist_2": 8, "reply_words": 8,
    }  # fmt: skip
    # Two of eight replies are "Okay."
    assert (curt["repeated_share"]["value"], warm["repeated_share"]["value"]) == (25.0, 0.0)
    assert "low" not in curt["repeated_share"]
    for name in ("bleu_1", "rouge_l", "bertscore_f1", "reply_words"):
        assert warm[name]["low"] <= warm[name]["value"] <= warm[name]["high"]
    (pair,) = found["comparisons"]
    assert (pair["paired"], pair["second"]) == (8, str(EXAMPLES / "curt.csv"))
    difference = curt["reply_words"]["value"] - warm["reply_words"]["value"]
    assert pair["differences"]["reply_words.diff"] == pytest.approx(difference, abs=1e-3)
    assert pair["differences"]["reply_words.diff_high"] < 0
    signature = found["files"][0]["signature"]
    assert {"bleu", "rouge_score", "bertscore_encoder_sha256"} <= signature.keys() and signature["references"] == "7"
    printed = capsys.readouterr().out
    assert "1 of 8 rows have no reference" in printed and "paired over 8 equal contexts" in printed
    assert "`dvc repro classifier@epitome` trains it" in printed


def test_levels_of_empathy_are_those_of_the_classifier_and_differences_need_a_reference(classifiers):
    Path("models").mkdir()
    Path("models/epitome").symlink_to(classifiers)
    found = scored(write("r.jsonl", ROWS))["files"][0]
    posts = ["My dog died.", "I won, you know.", "Oh 😀"]
    hardware = load().hardware
    ours = levels.score(classifiers, posts, [row["reply"] for row in ROWS], hardware)
    human = levels.score(classifiers, posts[:2], [row["reference"] for row in ROWS[:2]], hardware)
    for mechanism, short in MECHANISMS.items():
        level, diff = (found["metrics"][f"{name}_{short}"] for name in ("level", "diff"))
        assert (level["value"], level["n"]) == (pytest.approx(np.mean(ours[mechanism]), abs=1e-4), 3)
        squares = [(a - b) ** 2 for a, b in zip(ours[mechanism], human[mechanism], strict=False)]
        assert (diff["value"], diff["n"]) == (pytest.approx(np.mean(squares), abs=1e-4), 2)
        assert found["metrics"][f"reference_level_{short}"]["n"] == 2
    assert found["signature"]["epitome_classifiers"] == "random"


def test_only_what_the_columns_allow():
    found = scored(write("r.jsonl", [{"reply": text} for text in ("Oh no.", "Oh no!", "")]))["files"][0]
    alone = {
        "reply_words",
        "empty_share",
        "repeated_share",
        "opening_share",
        "act_share",
        *(f"dist_{n}{end}" for n in "123" for end in ("", "_per_reply")),
    }
    assert found["metrics"].keys() == alone and found["metrics"]["empty_share"]["value"] == pytest.approx(33.3333)
    assert "add a column reference" in found["left_out"][0] and "add a column context" in found["left_out"][1]
    assert "bleu" not in found["signature"] and "tokeniser" in found["signature"]


def test_an_encoder_that_is_missing_costs_bertscore_alone(monkeypatch):
    text = Path("params.yaml").read_text(encoding="utf-8")
    start = text.index("\nencoder:")
    changed = text[:start] + text[start:].replace("package: null", "package: no_such_package", 1).replace(
        "source: made", "source: package", 1
    )
    Path("params.yaml").write_text(changed, encoding="utf-8")
    found = scored(write("r.jsonl", ROWS))["files"][0]
    assert "rouge_l" in found["metrics"] and "bertscore_f1" not in found["metrics"]
    assert any(
        note.startswith("no BERTScore, since encoder") and "no_such_package" in note for note in found["left_out"]
    )


def test_files_are_paired_by_contexts_and_not_by_order():
    """The second file has the same replies in another order, and a context more."""
    rows = [{"context": f"I lost {i} games.", "reply": "word " * i, "reference": "Oh no, again?"} for i in range(1, 9)]
    more = [{"context": "Hello.", "reply": "word " * 50, "reference": "Hi."}]
    (pair,) = scored(write("a.jsonl", rows), write("b.json", more + rows[::-1]), "--no-models")["comparisons"]
    assert pair["paired"] == 8
    assert {value for name, value in pair["differences"].items() if name.startswith("reply_words")} == {0.0}


def test_a_metric_is_compared_where_both_have_a_reference():
    rows = [{"context": f"I lost {i}.", "reply": "Oh no", "reference": "Oh no" if i % 2 else "Why"} for i in range(8)]
    other = [row | {"reference": None if i % 2 else row["reference"]} for i, row in enumerate(rows)]
    found = scored(write("a.jsonl", rows), write("b.jsonl", other), "--no-models")
    assert [one["metrics"]["rouge_l"]["value"] for one in found["files"]] == [50.0, 0.0]
    assert found["comparisons"][0]["differences"]["rouge_l.diff"] == 0.0
    assert found["comparisons"][0]["differences"]["bleu_1.diff"] == 0.0


@pytest.mark.parametrize(
    ("change", "says"), [({"context": "Another."}, "no context is in both"), (None, "no column context")]
)
def test_files_without_a_common_context_are_called_unpaired(change, says, capsys):
    other = [{"reply": "Hm."} | (change or {})]
    (pair,) = scored(write("a.jsonl", ROWS), write("b.jsonl", other), "--no-models")["comparisons"]
    assert (pair["paired"], pair["differences"]) == (0, {})
    assert f"unpaired (3 and 1 replies): {says}" in capsys.readouterr().out.replace("a file has ", "")


def test_replies_exported_with_transformers_are_scored(tiny_tokenizer):
    """The code of docs/bring-your-own.md, with a model that writes nonsense."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from attune.models.tiny import make_model

    make_model(tiny_tokenizer, factory.tiny(), 1).save_pretrained("model")
    tiny_tokenizer.save_pretrained("model")
    tokenizer, model = AutoTokenizer.from_pretrained("model"), AutoModelForCausalLM.from_pretrained("model")
    contexts = [row["context"] for row in ROWS]
    with Path("theirs.jsonl").open("w", encoding="utf-8") as file:
        for context in contexts:
            prompt = tokenizer.apply_chat_template(
                context, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            torch.manual_seed(1)
            tokens = model.generate(**prompt, max_new_tokens=8, do_sample=True, pad_token_id=tokenizer.pad_token_id)
            reply = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
            file.write(json.dumps({"context": context, "reply": reply}) + "\n")
    found = scored("theirs.jsonl", write("ours.jsonl", ROWS), "--no-models")
    assert found["files"][0]["replies"] == 3 and found["comparisons"][0]["paired"] == 3


@pytest.mark.corpora
@pytest.mark.slow
def test_published_replies_are_read_paired_and_found_in_the_test_split(corpora_dir):
    """EmPO's replies of a 7 B model before and after SFT, to 2,540 of the 2,547 test dialogues."""
    from attune.corpora.readers import empathetic_dialogues
    from attune.data.examples import examples

    folder = corpora_dir / "empo_human"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    found = scored(folder / "replies-base.csv", folder / "replies-sft.csv", "--no-models", "--column", "label=emotion")
    before, after = (one["metrics"] for one in found["files"])
    assert found["comparisons"][0]["paired"] == 2540
    # The base model's replies are cut by length alone: more than twice as long.
    assert before["reply_words"]["value"] > 2 * after["reply_words"]["value"] > 20
    assert found["comparisons"][0]["differences"]["bleu_4.diff_low"] > 1
    dialogues, _ = empathetic_dialogues.read(corpora_dir / "empatheticdialogues")
    test = examples([one for one in dialogues if one.split == "test"], "last", None)
    rows, _ = read(folder / "replies-sft-dpo.csv")
    replies, told = match(rows, test, test, Path("theirs.csv"), "test")
    assert len(replies) > 2530 and f"{len(rows) - len(replies)} rows are of no test example" in told
    assert {replies[one.id].label for one in test if one.id in replies} == {None}
    targets = {one.id: normalise(one.target) for one in test}
    agreeing = sum(normalise(row.reference) == targets[name] for name, row in replies.items())
    assert agreeing > 0.99 * len(replies)


# A file as a variant.


def example(name, *texts, label="sad"):
    return Example(name, label, tuple(Turn("assistant" if i % 2 else "user", t) for i, t in enumerate(texts)), "Oh!")


TEST = [
    example("test/1", "My dog died."),
    example("test/2", "Hi.", "Yes?", "I won."),
    example("test/3", "My dog died!"),
]


def matched(*rows, subset=TEST):
    return match(read(write("theirs.jsonl", rows))[0], TEST, subset, Path("theirs.jsonl"), "test")


def test_rows_are_matched_by_id_and_by_equal_context_and_counted():
    replies, told = matched(
        {"id": "x", "context": "my dog DIED", "reply": "one"},
        {"id": "test/1", "context": "My dog died.", "reply": "two"},
        {"id": "y", "context": chat_of("Hello.", "Yes?", "I won."), "reply": "three"},
    )
    assert {name: row.reply for name, row in replies.items()} == {"test/1": "two", "test/3": "one"}
    assert told == (
        "theirs.jsonl: replies to 2 of 3 test examples; 1 rows are of no test example (neither id nor context is equal)"
    )


def test_rows_beyond_the_limit_are_counted():
    replies, told = matched(
        {"id": "test/1", "reply": "a"}, {"id": "test/2", "reply": "b"}, {"id": "u", "reply": "c"}, subset=TEST[:1]
    )
    assert list(replies) == ["test/1"] and "1 rows are of test examples beyond generate.limit" in told
    assert "replies to 1 of 1 test examples; 1 rows are of no test example" in told


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"context": "Good day.", "reply": "a"}], "replies to 0 of 3 test examples; 1 rows are of no test example"),
        ([{"id": "7", "reply": "a"}], "must be to the contexts of data/dialogues/test.parquet"),
        (
            [{"id": "test/2", "context": "My dog died.", "reply": "a"}],
            "theirs.jsonl:1: the context is not that of test",
        ),
        (
            [{"context": "My dog died.", "reply": "a"}] * 3,
            "theirs.jsonl:3: a second reply to the context of test example",
        ),
    ],
)
def test_replies_to_something_else_are_refused(rows, says):
    with pytest.raises(DataError) as error:
        matched(*rows)
    assert says in str(error.value)


THEIRS = "my_data/theirs.jsonl"


@pytest.fixture
def variant(classifiers):
    """Dialogues, the replies of base, and a file of replies to ten of the twelve test examples, as a variant.

    Only base has log-probabilities; nothing was trained.
    """
    text = Path("params.yaml").read_text(encoding="utf-8")
    theirs = f"  theirs:\n    model: {THEIRS}\n    instruction: data/dialogues\n"
    Path("params.yaml").write_text(text.replace("\nvariants:\n", f"\nvariants:\n{theirs}"), encoding="utf-8")
    test = [
        Dialogue(
            f"test/{i:02}", "sample", "test", "sad", (Turn("user", f"I lost game {i}."), Turn("assistant", "Oh no!"))
        )
        for i in range(12)
    ]
    write_dialogues(test, Path("data/dialogues/test.parquet"))
    rows = [{"context": f"i lost game {i}", "reply": f" Game {i}? Oh no. "} for i in range(2, 12)]
    Path("my_data").mkdir()
    write(THEIRS, [*rows, {"context": "Something else.", "reply": "Hm."}])
    examples = read_examples(Path("data/dialogues/test.parquet"), load().context)
    ours = records({one.id: OwnReply("", f"Sorry {i}.") for i, one in enumerate(examples)}, examples)
    likely = {"rejected": "Great!", "reference_logp": -1.0, "rejected_logp": -2.0}
    write_replies([row | likely for row in ours], Path("data/replies/base.parquet"))
    Path("models").mkdir()
    Path("models/epitome").symlink_to(classifiers)


def test_a_file_is_a_variant_in_scores_intervals_and_pages(variant, capsys):
    params = load()
    stages.generate.main("theirs", params)
    told = "theirs.jsonl: replies to 10 of 12 test examples; 1 rows are of no test example"
    assert told in capsys.readouterr().err
    replies = pq.read_table("data/replies/theirs.parquet").to_pylist()
    assert [row["id"] for row in replies] == [f"test/{i:02}" for i in range(2, 12)]
    assert replies[0] == {
        "id": "test/02", "label": "sad", "context": [{"role": "user", "text": "I lost game 2.", "act": None}],
        "reference": "Oh no!", "reply": "Game 2? Oh no.",
        "rejected": None, "reference_logp": None, "rejected_logp": None,
    }  # fmt: skip
    stages.references.main("epitome", params)
    for name in ("base", "theirs"):
        stages.evaluate.main(name, params)
        stages.scores.main(name, "epitome", params)
        for scorer in ("text", "epitome"):
            stages.intervals.main(name, scorer, params)
    stages.mmlu.main("theirs", params)
    metrics, ours = (read_json(f"metrics/text/{name}.json") for name in ("theirs", "base"))
    assert "preference_accuracy" not in metrics and ours["preference_accuracy"] == 100.0
    signature = read_json("metrics/text/theirs.signature.json")
    assert signature["engine"].startswith("made elsewhere: sha256 ") and signature["preference_examples"] == "0"
    assert read_json("metrics/mmlu/theirs.json") == {}
    bounds = read_json("metrics/intervals/text/theirs.json")
    assert bounds["rouge_l.low"] <= metrics["rouge_l"] <= bounds["rouge_l.high"]
    # Over the ten examples that both answer: "Sorry 5." has three words, "Game 5? Oh no." six.
    assert (bounds["reply_words.diff"], bounds["reply_words.diff_low"]) == (3.0, 3.0)
    assert not [name for name in bounds if name.startswith("preference_accuracy")]
    assert "diff_er.diff" in read_json("metrics/intervals/epitome/theirs.json")
    pages(params)


def test_the_valid_split_is_answered_in_its_place(variant, capsys):
    params = load()
    test = read_examples(params.generate.dialogues, params.context)
    valid = [replace(one, id=one.id.replace("test", "valid")) for one in test[3:]]
    turns = [(*one.context, Turn("assistant", one.target)) for one in valid]
    dialogues = [Dialogue(e.id, "sample", "valid", "sad", both) for e, both in zip(valid, turns, strict=True)]
    write_dialogues(dialogues, Path("data/dialogues/valid.parquet"))
    params = replace(params, generate=replace(params.generate, split="valid"))
    stages.generate.main("theirs", params)
    assert "theirs.jsonl: replies to 9 of 9 valid examples; 2 rows are of no valid example" in capsys.readouterr().err
    stages.references.main("epitome", params)
    for path in ("data/replies/theirs.parquet", "data/references/epitome.parquet"):
        assert pq.read_table(path)["id"].to_pylist() == [f"valid/{i:02}" for i in range(3, 12)]


def pages(params):
    """The card, the report, the first screen and the ratings of a run with a variant without a model."""
    for name, values in {"data": {"train_dialogues": 9, "test_dialogues": 12}, "labels": {"train_label_sad": 9},
                         "mmlu/base": {"acc": 25.0}, "intervals/mmlu/base": {}, "intervals/mmlu/theirs": {},
                         "classifiers/epitome": {"er_accuracy": 1.0}}.items():  # fmt: skip
        write_json(Path(f"metrics/{name}.json"), values)
    for key in params.rounds:
        write_json(Path(f"metrics/pairs/{key}.json"), {"pairs": 4})
        for name in DPO_CURVES:
            write_text(dpo_curve_file(key, name).path, f"step\t{name}\n1\t0.5\n")
    write_text(sft_curve_file("sft", "loss").path, "step\tloss\n1\t2.5\n")
    stages.card.main("theirs", params)
    card = Path("reports/cards/theirs.md").read_text(encoding="utf-8")
    assert "10 of the 12 examples" in card and sha256_of(Path(THEIRS)) in card
    assert re.search(r"^\| ROUGE-L ↑ +\| +[\d.]+ \| [\d.]+ to [\d.]+ \| ", card, flags=re.MULTILINE)
    assert "MMLU ↑" not in card and "{{" not in card
    stages.report.main(params)
    summary = Path("reports/summary.md").read_text(encoding="utf-8")
    assert f"theirs: replies made elsewhere ({THEIRS}), to 10 of these examples" in summary
    assert "12 test examples answered" in summary
    table = next(part for part in summary.split("\n\n") if part.startswith("| variant |") and "MMLU ↑" in part)
    row = next(line for line in table.splitlines() if line.startswith("| theirs"))
    # The first column is MMLU.
    assert row.split("|")[2].strip() == "\u2013"
    assert "Game 5? Oh no" in Path("reports/samples.html").read_text(encoding="utf-8")
    # The run is about the variant that has a model, wherever the other one stands.
    screen = first_screen(params)
    assert screen.startswith("base prefers the human reply") and "chat base" in screen and "theirs" in screen
    assert len(rate.read(("base", "theirs"), params)) == 10


def test_an_example_that_is_missing_without_a_reason_is_still_an_error(variant):
    scores = pd.DataFrame({"id": ["a", "b"], "x": [1.0, 2.0]})
    with pytest.raises(DataError, match="differ in 1 examples"):
        stages.intervals.compare(scores, scores[:1], "last", 100, 1)
    with pytest.raises(DataError, match="differ in 3 examples"):
        stages.intervals.compare(scores, scores[:1].assign(id="c"), "last", 100, 1, partial=True)


def test_a_variant_without_a_model_is_no_model_to_talk_to_or_to_publish(variant):
    params = load()
    assert params.last_model == "base"
    for act in (lambda: chat.require("theirs", params), lambda: push.push("theirs", params, "a/b", False)):
        with pytest.raises(ParamsError, match=rf"theirs has replies made elsewhere \({THEIRS}\) and no model"):
            act()


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (THEIRS, "my_data/other.jsonl", r"variants.theirs.model = 'my_data/other.jsonl': there is no such file"),
        (
            f"{THEIRS}\n    instruction: data/dialogues",
            f"{THEIRS}\n    instruction: data/x.txt",
            "replies .* take none",
        ),
        ("model: models/base", f"model: {THEIRS}", "has files of replies alone: `python -m attune score`"),
    ],
)
def test_params_that_cannot_be_meant_are_refused_before_anything_runs(variant, old, new, says):
    text = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ParamsError, match=says):
        load()


def test_the_file_is_a_dependency_of_what_reads_it(tmp_path, monkeypatch):
    folder = tmp_path / "composed"
    folder.mkdir()
    project(folder)
    (folder / "my_data").mkdir()
    (folder / THEIRS).write_text("{}")
    monkeypatch.chdir(folder)
    compose(["model=tiny", f"+variants.theirs={{model: {THEIRS}, instruction: data/dialogues}}"])
    stages_with = resolved(folder)
    reading = {name for name, stage in stages_with.items() if THEIRS in stage["deps"]}
    assert reading == {"generate@theirs", "mmlu@theirs", "card@theirs"}
    assert "data/replies/theirs.parquet" in stages_with["evaluate@theirs"]["deps"]
    compose(["model=tiny"])
    assert {name: stage for name, stage in stages_with.items() if "theirs" not in name} == resolved(folder)


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))
