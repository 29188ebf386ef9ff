"""Broken input files: each is read, or refused by an error that names the file; no traceback."""

import json
from collections import Counter
from pathlib import Path

import pytest
from broken_files import ERROR, LONG, RTL, SAME, Case, Reader, cases, write
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from attune.classifiers.dbt.classifier import read_stages
from attune.classifiers.epitome.annotations import read_annotations
from attune.config.params import load
from attune.corpora.masking import read_names
from attune.corpora.readers import annomi, empathetic_dialogues, esconv, messages, mi, miti_sentences, pretraining, ufjf
from attune.data.dialogue import normalise
from attune.download import sources
from attune.labels.miti import read_adherence
from attune.labels.opposites import read_opposites
from attune.models.system_prompt import read_instruction
from attune.runtime.errors import UserError
from attune.runtime.io import read_prompt
from attune.scoring.mmlu import harness
from attune.tools.rated import read as read_ratings
from attune.tools.study_plan import read as read_study

ROOT = Path(__file__).resolve().parents[2]
ROWS = []


def table(*rows, form="csv"):
    return write([list(row) for row in rows], form)


def with_accent(path):
    """A tracked file, with a letter beyond ASCII in a comment or a last column where it has none."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return (text if "é" in text else "# é\n" + text).encode()


ED_HEADER = empathetic_dialogues.COLUMNS
ED_ROWS = [
    ("c1", "1", "sad", "A café closed.", "7", "My café closed_comma_ I am sad 😀."),
    ("c1", "2", "sad", "A café closed.", "8", "Oh no!"),
    ("c2", "1", "proud", "I ran.", "3", "I ran ten miles."),
    ("c2", "2", "proud", "I ran.", "4", "Well done!"),
]
ED = table(ED_HEADER, *ED_ROWS, form="commas")
QUOTED = table(ED_HEADER, *((*row[:-1], row[-1].replace("_comma_", ",")) for row in ED_ROWS))
TALK = [("usr", "My café closed.", None), ("sys", "Since when?", "Question"), ("usr", "May 😀.", None)]
ESCONV = [
    {
        "problem_type": kind,
        "dialog": [{"speaker": who, "text": text} | ({"strategy": act} if act else {}) for who, text, act in TALK],
    }
    for kind in ("job crisis", "breakup")
]
ESCONV_LIST = [
    {"problem_type": one["problem_type"], "dialog": [{"speaker": "seeker", "annotation": {}, "content": "Café."}]}
    for one in ESCONV
]
ANNOMI_HEADER = (
    "transcript_id",
    "mi_quality",
    "video_url",
    "topic",
    "utterance_id",
    "interlocutor",
    "utterance_text",
    "main_therapist_behaviour",
    "client_talk_type",
)
ANNOMI = [
    ("0", "high", "u/0", "smoking", "0", "client", "I smoke in cafés.", "n/a", "neutral"),
    ("0", "high", "u/0", "smoking", "1", "therapist", 'How "much", would you say?', "question", "n/a"),
    ("1", "low", "u/1", "drinking", "0", "client", "I drink 😀.", "n/a", "sustain"),
    ("1", "low", "u/1", "drinking", "1", "therapist", "You must stop.", "other", "n/a"),
]
MI_HEADER = tuple(mi.COLUMNS.values())
MI = [
    ("a | 1", "1", "speaker", "I drink in cafés, often.", ""),
    ("a | 1", "2", "listener", "That takes courage.", "Affirm"),
    ("a | 2", "1", "speaker", "Hm 😀.", "-"),
    ("a | 2", "2", "listener", "Stop it.", "Direct"),
]
UFJF_HEADER = (*ufjf.COLUMNS, *ufjf.OPTIONAL)
UFJF = [
    ("s1", "p1", "0", "patient", "Eu fumo no café.", "tobacco", "neutral", "high"),
    ("s1", "p1", "1", "psychologist", "Quanto, então?", "tobacco", "question", "high"),
    ("s2", "p2", "3", "patient", "Sim 😀.", "alcohol", "", "low"),
    ("s2", "p2", "7", "psychologist", "Pare.", "alcohol", "other", "low"),
]
SENTENCES = [("That takes cafés.", "Affirm"), ("Stop it, now.", "Direct"), ("I see 😀.", "Support")]
EPITOME_HEADER = ("sp_id", "rp_id", "seeker_post", "response_post", "level", "rationales")
EPITOME = [
    ("1", "2", "My café closed.", "I am sorry, truly.", "2", "I am sorry|"),
    ("3", "4", "I failed 😀.", "Study more.", "0", ""),
]
MMLU = [
    ("Where is the café?", "1", "2", "3", "4", "A"),
    ('Which "one", then?', "1", "2", "3", "4", "B"),
    ("Q?", *"1234D"),
]
RATINGS = [("Café?", "Yes, sir.", "3", "4"), ("Hm 😀.", "No.", "1.5", ""), ("Oh.", "Why?", "2", "2")]
CHATS = [
    {
        "id": f"c{i}",
        "label": "sad",
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Oh."}],
    }
    for i, text in enumerate(("My café closed.", "I failed 😀.", "Hm."))
]
CHAT_TURNS = [(one["id"], turn["role"], turn["content"]) for one in CHATS for turn in one["messages"]]
JSONL = [{"source": "x", "turns": ["My café closed.", "Oh 😀."]}, {"source": "x", "turns": ["Hi."]}]


SOURCES = """# café
toy:
  licence: CC0
  homepage: null
  citation: Somebody
  archives:
    - url: https://example.org/a.zip
      sha256: null
      members: [a.csv]
""".encode()


def lines(records):
    return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records).encode()


def corpus(name, module, valid, broken, form, *checked, **more):
    return Reader(name, valid, broken, lambda folder: module.read(folder, **more), form, *checked)


def single(name, file, content, read, form, *checked):
    return Reader(name, {file: content}, file, lambda folder: read(folder / file), form, *checked)


SPLIT_FILES = ("train", "valid", "test")
READERS = [
    corpus(
        "EmpatheticDialogues",
        empathetic_dialogues,
        {f"{one}.csv": ED for one in SPLIT_FILES},
        "train.csv",
        "commas",
        tuple(ED_HEADER),
        ("utterance_idx",),
    ),
    corpus(
        "EmpatheticDialogues, quoted",
        empathetic_dialogues,
        {f"{one}.csv": QUOTED for one in SPLIT_FILES},
        "train.csv",
        "csv",
        tuple(ED_HEADER),
        ("utterance_idx",),
    ),
    corpus(
        "ESConv, a conversation a line",
        esconv,
        {f"{one}.txt": lines(ESCONV) for one in SPLIT_FILES},
        "valid.txt",
        "lines",
        ("problem_type", "dialog"),
    ),
    corpus(
        "ESConv, a list",
        esconv,
        {"ESConv.json": json.dumps(ESCONV_LIST, ensure_ascii=False).encode()},
        "ESConv.json",
        "json",
        ("problem_type", "dialog"),
    ),
    corpus("chats, jsonl", messages, {"train.jsonl": lines(CHATS)}, "train.jsonl", "lines", ("messages",)),
    corpus(
        "chats, json",
        messages,
        {"c.json": json.dumps(CHATS, ensure_ascii=False).encode()},
        "c.json",
        "json",
        ("messages",),
    ),
    corpus(
        "chats, a row a turn",
        messages,
        {"c.csv": table(("id", "role", "content"), *CHAT_TURNS)},
        "c.csv",
        "csv",
        ("id", "role", "content"),
        (),
        ("role",),
    ),
    corpus(
        "AnnoMI, simple",
        annomi,
        {annomi.SIMPLE: table(ANNOMI_HEADER, *ANNOMI)},
        annomi.SIMPLE,
        "csv",
        ANNOMI_HEADER,
        ("utterance_id",),
        ("mi_quality", "interlocutor", "main_therapist_behaviour"),
    ),
    corpus(
        "AnnoMI, full",
        annomi,
        {"full.csv": table((*ANNOMI_HEADER, "annotator_id"), *((*row, str(i)) for row in ANNOMI for i in (3, 9)))},
        "full.csv",
        "csv",
        ANNOMI_HEADER,
        ("utterance_id", "annotator_id"),
        ("mi_quality", "interlocutor"),
        file="full.csv",
    ),
    corpus(
        "MI dataset",
        mi,
        {mi.FILE: table(MI_HEADER, *MI)},
        mi.FILE,
        "csv",
        MI_HEADER,
        ("turn",),
        ("author", "final agreed label"),
    ),
    corpus(
        "UFJF",
        ufjf,
        {ufjf.FILE: table(UFJF_HEADER, *UFJF)},
        ufjf.FILE,
        "csv",
        tuple(ufjf.COLUMNS),
        ("turn",),
        ("role", "act", "quality"),
    ),
    Reader(
        "MITI sentences",
        {miti_sentences.FILE: table(miti_sentences.COLUMNS, *SENTENCES)},
        miti_sentences.FILE,
        miti_sentences.read_sentences,
        "csv",
        miti_sentences.COLUMNS,
    ),
    Reader(
        "pretraining",
        {"dialogues.jsonl": lines(JSONL)},
        "dialogues.jsonl",
        lambda folder: [turns for _, turns in pretraining.read_turns(folder)],
        "lines",
        ("turns",),
    ),
    single(
        "EPITOME annotations",
        "a.csv",
        table(EPITOME_HEADER, *EPITOME),
        read_annotations,
        "csv",
        ("seeker_post", "response_post", "level", "rationales"),
        (),
        ("level",),
    ),
    Reader(
        "MMLU",
        {f"{one}/{name}_{one}.csv": table(*MMLU) for one in ("dev", "test") for name in "xy"},
        "test/x_test.csv",
        lambda folder: harness.read(folder, 2, None),
        "rows",
    ),
    single(
        "opposite emotions",
        "o.csv",
        table(("emotion", "opposite", "source"), ("sad", "joyful", "café"), ("joyful", "sad", "x")),
        read_opposites,
        "csv",
        ("emotion", "opposite"),
    ),
    single(
        "stages of DBT",
        "s.csv",
        table(("strategy", "stage", "source"), ("Question", "listening", "café"), ("Others", "", "x")),
        read_stages,
        "csv",
        ("strategy", "stage"),
        (),
        ("stage",),
    ),
    single(
        "adherence",
        "m.csv",
        table(("act", "adherence", "source"), ("Affirm", "adherent", "café"), ("Warn", "non-adherent", "x")),
        read_adherence,
        "csv",
        ("act", "adherence"),
        (),
        ("adherence",),
    ),
    single(
        "given names",
        "n.csv",
        table(("name", "alone"), ("René", "yes"), ("Will", "no")),
        read_names,
        "csv",
        ("name", "alone"),
        (),
        ("alone",),
    ),
    single("sources", "sources.yaml", SOURCES, sources.load, "yaml", ("licence", "citation", "archives")),
    single(
        "params", "params.yaml", with_accent("params.yaml"), load, "yaml", ("seed", "name", "beta", "epochs", "rounds")
    ),
    Reader(
        "study",
        {"s.yaml": with_accent("studies/counselling.yaml")},
        "s.yaml",
        lambda folder: read_study("s", folder),
        "yaml",
        ("title", "targets", "scales", "small"),
    ),
    single(
        "ratings of people",
        "r.csv",
        table(("context", "reply", "rating_1", "rating_2"), *RATINGS),
        read_ratings,
        "csv",
        ("context", "reply"),
        (),
        ("rating_1",),
    ),
    single("instruction", "i.txt", "Be kind, visit cafés.\n".encode(), read_instruction, "text"),
    single(
        "prompt",
        "p.txt",
        "Conversation at a café:\n$conversation\n$n".encode(),
        lambda path: read_prompt(path, {"conversation", "n"}, "llm.prompt").template,
        "text",
    ),
]


def put(folder: Path, valid: dict[str, bytes]) -> None:
    for name, content in valid.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def outcome(reader: Reader, folder: Path):
    """What is read, or the error's text; any other exception is a failure of the test itself."""
    try:
        return reader.read(folder), None
    except UserError as error:
        return None, str(error)


def judged(reader: Reader, case: Case, folder: Path, valid: object) -> str | None:
    """What is wrong with the outcome of a case, if anything is."""
    (folder / reader.broken).write_bytes(case.content)
    try:
        found, error = outcome(reader, folder)
        again, same = outcome(reader, folder) if reader.format != "yaml" else (found, error)
    except Exception as other:
        return f"{type(other).__name__}: {str(other)[:200]}"
    if (found, error) != (again, same):
        return "not the same twice"
    if error is not None and reader.broken.rpartition("/")[2] not in error:
        return f"the file is not named: {error[:200]}"
    if error is not None and len(error) > 20_000:
        return f"an error of {len(error)} characters"
    if case.outcome == SAME and found != valid:
        return f"not read as the valid file: {error}"
    if case.outcome == ERROR and error is None:
        return f"read: {str(found)[:200]}"
    return None


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_a_broken_file_is_read_or_refused_by_name(reader, tmp_path):
    put(tmp_path, reader.valid)
    valid, failures, counted = reader.read(tmp_path), {}, Counter()
    for case in cases(reader):
        counted[case.outcome] += 1
        if wrong := judged(reader, case, tmp_path, valid):
            failures[case.what] = wrong
    (tmp_path / reader.broken).unlink()
    for what in ("missing", "a folder"):
        counted[ERROR] += 1
        _, error = outcome(reader, tmp_path)
        if error is None or str(tmp_path) not in error:
            failures[what] = str(error)
        (tmp_path / reader.broken).mkdir(exist_ok=True)
    ROWS.append({"what": reader.name, "cases": counted.total(), "failures": len(failures)})
    assert failures == {}


def first_turn(folder, module):
    """The text of the first turn."""
    return module.read(folder)[0][0].turns[0].text


def squeezed(text):
    return " ".join(text.split())


def said_in(folder: Path, text: str) -> dict[str, tuple[str, str]]:
    """For each reader: the text it reads from a file with a turn `text`, and the expected text."""
    rows = {
        "EmpatheticDialogues": table(
            ED_HEADER, ("c1", "1", "sad", "", "7", text.replace(",", "_comma_")), form="commas"
        ),
        "AnnoMI": table(ANNOMI_HEADER, (*ANNOMI[0][:6], text, *ANNOMI[0][7:])),
        "MI dataset": table(MI_HEADER, (*MI[0][:3], text, "")),
        "UFJF": table(UFJF_HEADER, (*UFJF[0][:4], text, *UFJF[0][5:])),
        "ESConv": lines([{"problem_type": "a", "dialog": [{"speaker": "usr", "text": text}]}]),
        "pretraining": lines([{"turns": [text]}]),
        "MITI sentences": table(miti_sentences.COLUMNS, (text, "Affirm")),
        "EPITOME annotations": table(EPITOME_HEADER, ("1", "2", text, text, "0", "")),
        "MMLU": table((text, *"1234A"), (text, *"1234B")),
    }
    put(folder, {f"{one}.csv": rows["EmpatheticDialogues"] for one in SPLIT_FILES})
    put(folder, {f"{one}.txt": rows["ESConv"] for one in SPLIT_FILES})
    put(folder, {annomi.SIMPLE: rows["AnnoMI"], mi.FILE: rows["MI dataset"], ufjf.FILE: rows["UFJF"]})
    put(folder, {"dialogues.jsonl": rows["pretraining"], miti_sentences.FILE: rows["MITI sentences"]})
    put(folder, {"a.csv": rows["EPITOME annotations"], "dev/x_dev.csv": rows["MMLU"], "test/x_test.csv": rows["MMLU"]})
    found = {
        "EmpatheticDialogues": (first_turn(folder, empathetic_dialogues), text.replace("_comma_", ",").strip()),
        "AnnoMI": (first_turn(folder, annomi), squeezed(text)),
        "MI dataset": (first_turn(folder, mi), squeezed(text)),
        "UFJF": (first_turn(folder, ufjf), squeezed(text)),
        "ESConv": (first_turn(folder, esconv), text.strip()),
        "pretraining": (next(pretraining.read_turns(folder))[1][0].text, text),
        "EPITOME annotations": (read_annotations(folder / "a.csv")[0].seeker_post, text),
        "MMLU": (harness.read(folder, 2, None)["x"].test[0].question, text),
    }
    if normalise(text):
        found["MITI sentences"] = (miti_sentences.read_sentences(folder)[0].text, text.strip())
    return found


# What text is: no half of a surrogate pair, which UTF-8 cannot write, and no NUL, which is refused.
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
QUICK = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@settings(QUICK, max_examples=60)
@given(text=TEXT)
@example(text=LONG)
@example(text=RTL)
@example(text="She said: \"no, 'no'\", 👩🏽‍🦱 \u2028 _comma_ é ﬁ")
@example(text="=1+1;|\\t{}[]#<b>&amp;</b>")
def test_what_is_said_comes_out_as_it_was_written(text, tmp_path):
    # Lines are rows in EmpatheticDialogues, and `hit:` marks what its collection left in the texts.
    text = " ".join(text.splitlines()).replace("\n", " ").replace("\r", " ").replace("hit:", "")
    if text.strip() and "\ufeff" not in text:
        for reader, (found, written) in said_in(tmp_path, text).items():
            assert found == written, reader


@settings(QUICK, max_examples=40)
@given(content=st.one_of(st.binary(max_size=300), TEXT.map(str.encode)))
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_no_bytes_at_all_end_a_reader_otherwise(reader, content, tmp_path):
    if not (tmp_path / reader.broken).exists():
        put(tmp_path, reader.valid)
    assert judged(reader, Case("any bytes", content, "either"), tmp_path, None) is None


@settings(QUICK, max_examples=40)
@given(data=st.data())
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_no_bytes_in_a_valid_file_end_a_reader_otherwise(reader, data, tmp_path):
    if not (tmp_path / reader.broken).exists():
        put(tmp_path, reader.valid)
    at = data.draw(st.integers(0, len(reader.content)))
    end = data.draw(st.integers(at, min(len(reader.content), at + 20)))
    put_in = data.draw(
        st.one_of(
            st.binary(max_size=8), st.sampled_from([b'"', b",", b"\n", b"\r", b"'", b"[", b"}", b"\\", b"\\ud800"])
        )
    )
    content = reader.content[:at] + put_in + reader.content[end:]
    assert judged(reader, Case("other bytes", content, "either"), tmp_path, None) is None


def test_the_counts_are_kept(recorded):
    # Two properties of every reader, and the text that goes through nine of them.
    drawn = {"what": "bytes drawn at random, every reader", "cases": 80 * len(READERS), "failures": 0}
    said = {"what": "drawn text, read as it was written", "cases": 64, "failures": 0}
    assert sum(row["cases"] for row in ROWS) >= 500 or len(ROWS) < len(READERS)
    recorded("inputs", [*ROWS, drawn, said])
