import csv
import random
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

from attune.tools.sample_data.dialogues import LEVELS, make_files, write_sample
from attune.tools.sample_data.replies import SHARES, draw_reply
from attune.tools.sample_data.text import as_listener, chosen, load_phrases, sentence_case, with_opener

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = ROOT / "data" / "sample"
PHRASES = SAMPLE / "phrases.yaml"
CLAUSES = load_phrases(SAMPLE / "replies.yaml")
SPLITS = {"train": 60, "valid": 8, "test": 20}
HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags"
MEND = "the tracked sample differs from its phrases: run `python -m attune sample dialogues` and track what it writes"


class Conversation(NamedTuple):
    split: str
    emotion: str
    rows: list[list[str]]

    @property
    def utterances(self):
        return [row[5] for row in self.rows]

    @property
    def last_listener(self):
        return [row[5] for row in self.rows if row[4] == "0"][-1]

    @property
    def text(self):
        spoken = " ".join(self.utterances).replace("_comma_", ",").lower()
        return " ".join(re.findall(r"[a-z0-9']+", spoken))


def split_path(folder, split):
    return folder / "empatheticdialogues" / f"{split}.csv"


def read_lines(split):
    return split_path(SAMPLE, split).read_text(encoding="utf-8").split("\n")


def read_conversations(split):
    grouped = defaultdict(list)
    for line in read_lines(split)[1:-1]:
        row = line.split(",")
        grouped[row[0]].append(row)
    return [Conversation(split, rows[0][2], rows) for rows in grouped.values()]


@pytest.fixture(scope="module")
def conversations():
    return [conversation for split in SPLITS for conversation in read_conversations(split)]


@pytest.fixture(scope="module")
def opposites():
    with (ROOT / "data" / "opposite_emotions.csv").open(encoding="utf-8", newline="") as file:
        return {row["emotion"]: row["opposite"] for row in csv.DictReader(file)}


def test_tracked_files_are_what_the_generator_writes(tmp_path):
    write_sample(PHRASES, tmp_path)
    for path in (LEVELS, *(f"empatheticdialogues/{split}.csv" for split in SPLITS)):
        assert (tmp_path / path).read_bytes() == (SAMPLE / path).read_bytes(), MEND


def test_samples_take_at_most_five_megabytes():
    assert sum(path.stat().st_size for path in SAMPLE.rglob("*")) < 5e6


def test_each_emotion_has_its_share_of_each_split(conversations, opposites):
    counts = Counter((conversation.split, conversation.emotion) for conversation in conversations)
    assert counts == {(split, emotion): n for split, n in SPLITS.items() for emotion in opposites}
    assert len(opposites) == 32


@pytest.mark.parametrize("split", SPLITS)
def test_lines_have_the_format_of_the_originals(split):
    header, *rows, after_last_newline = read_lines(split)
    assert header == HEADER
    assert after_last_newline == ""
    for line in rows:
        fields = line.split(",")
        assert len(fields) == 8
        assert all(fields[:6])
        assert fields[6:] == ["", ""]
        assert re.fullmatch(r"hit:\d+_conv:\d+", fields[0])
        assert not re.search(r'["$\r\t]|  ', line)


def test_conversation_ids_are_in_one_split_only(conversations):
    ids = Counter(conversation.rows[0][0] for conversation in conversations)
    assert set(ids.values()) == {1}


def test_turns_alternate_from_the_speaker(conversations):
    for conversation in conversations:
        assert 4 <= len(conversation.rows) <= 6
        for index, row in enumerate(conversation.rows, start=1):
            assert row[1] == str(index)
            assert row[4] == str(index % 2)


def test_label_and_situation_are_the_same_on_each_row(conversations):
    for conversation in conversations:
        assert len({(row[2], row[3]) for row in conversation.rows}) == 1


def test_four_turns_are_the_most_common_of_all_lengths(conversations):
    lengths = Counter(len(conversation.rows) for conversation in conversations)
    assert set(lengths) == {4, 5, 6}
    assert lengths[4] > lengths[5] + lengths[6]


def test_no_dialogue_text_is_there_twice(conversations):
    repeated = [text for text, n in Counter(c.text for c in conversations).items() if n > 1]
    assert repeated == []


def test_no_last_reply_is_shared_with_the_opposite_emotion(conversations, opposites):
    replies = defaultdict(set)
    for conversation in conversations:
        replies[conversation.emotion].add(conversation.last_listener)
    assert [e for e, opposite in opposites.items() if replies[e] & replies[opposite]] == []


def test_targets_rarely_repeat(conversations):
    """Neither as a whole nor in their words: 160 targets of the test split have few pairs of words twice."""
    targets = {split: [c.last_listener for c in conversations if c.split == split] for split in SPLITS}
    times = Counter(targets["train"])
    assert len(times) > 0.95 * len(targets["train"]) and max(times.values()) <= 4
    assert max(Counter((c.emotion, c.last_listener) for c in conversations).values()) == 1
    some = random.Random(0).sample(targets["test"], 160)
    pairs = [pair for target in some for pair in pairwise(target.lower().split())]
    assert len(set(pairs)) > 0.6 * len(pairs)


def test_last_replies_are_short(conversations):
    lengths = [len(conversation.last_listener.split()) for conversation in conversations]
    assert 12 < sum(lengths) / len(lengths) < 18
    assert min(lengths) >= 4 and max(lengths) <= 50


def test_opposite_emotions_share_situations_and_no_attitude(opposites):
    emotions = load_phrases(PHRASES)["emotions"]
    scenes = {emotion: {frame.get("scene") for frame in emotions[emotion]["frames"]} - {None} for emotion in emotions}
    for emotion, opposite in opposites.items():
        assert len(scenes[emotion] & scenes[opposite]) >= 1
        assert CLAUSES["emotions"][emotion]["family"] != CLAUSES["emotions"][opposite]["family"]


def test_phrases_have_material_for_each_emotion(opposites):
    emotions = load_phrases(PHRASES)["emotions"]
    assert set(emotions) == set(opposites) == set(CLAUSES["emotions"])
    for emotion, material in emotions.items():
        assert len(material["frames"]) == 8
        assert len(material["exchanges"]) >= 5
        assert len(material["close"]) >= 3
        assert all(len(frame["open"]) >= 2 for frame in material["frames"])
        assert all(len(CLAUSES["emotions"][emotion][key]) >= 4 for key in ("ip2", "ex2", "none"))


def test_adding_to_one_emotion_leaves_the_others_as_they_are():
    phrases, clauses = load_phrases(PHRASES), load_phrases(SAMPLE / "replies.yaml")
    before = make_files(phrases, clauses)["empatheticdialogues/train.csv"].split("\n")
    phrases["emotions"]["sad"]["exchanges"][0]["speaker"].append("Last night.")
    clauses["emotions"]["sad"]["none"].append("Sleep on it.")
    after = make_files(phrases, clauses)["empatheticdialogues/train.csv"].split("\n")
    assert before != after
    assert [row for row in before if ",sad," not in row] == [row for row in after if ",sad," not in row]


def test_levels_are_those_of_the_targets(conversations):
    with (SAMPLE / LEVELS).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["split"]) for row in rows] == [(c.rows[0][0], c.split) for c in conversations]
    for mechanism, weights in SHARES.items():
        for split in SPLITS:
            levels = Counter(int(row[mechanism]) for row in rows if row["split"] == split)
            assert [100 * levels[level] / levels.total() for level in range(3)] == pytest.approx(weights, abs=7)
    questions = [conversation.last_listener.count("?") for conversation in conversations]
    assert [row["ex"] != "0" for row in rows] == [number > 0 for number in questions]


def test_a_reply_is_made_of_clauses_of_its_levels():
    """The key of each sentence names a list that holds its clause."""
    for emotion in CLAUSES["emotions"]:
        for number in range(20):
            reply = draw_reply(CLAUSES, emotion, {"about": "my dog"}, random.Random(f"{emotion}{number}"))
            assert reply.text == " ".join(sentence for _, sentence in reply.sentences)
            for key, sentence in reply.sentences:
                family = CLAUSES["families"][CLAUSES["emotions"][emotion]["family"]]
                lists = [part.get(key, []) for part in (CLAUSES["shared"], family, CLAUSES["emotions"][emotion])]
                lists += [family["echo"]] if key == "none" else []
                patterns = [pattern_of(clause) for clauses in lists for clause in clauses]
                assert any(re.search(pattern + "$", sentence, re.IGNORECASE) for pattern in patterns), sentence
                assert key == "none" or sentence in reply.rationales(key[:2])
                assert key == "none" or reply.levels[key[:2]] == int(key[2])


def pattern_of(clause):
    """A pattern of the sentences that a clause gives."""
    parts = re.split(r"\{([^{}]*)\}", clause)
    made = (
        f"({'|'.join(map(re.escape, part.split('|')))})" if i % 2 else re.escape(part) for i, part in enumerate(parts)
    )
    return re.sub(r"(\\ )+", " *", "".join(made)).replace(r"\$about", "your dog")


@pytest.mark.parametrize(
    ("clause", "texts"),
    [
        ("I'm {so|really|} sorry.", {"I'm so sorry.", "I'm really sorry.", "I'm sorry."}),
        ("It {is|was}{ so|} bad", {"It is bad", "It was bad", "It is so bad", "It was so bad"}),
        ("I {see|}, well", {"I see, well", "I, well"}),
    ],
)
def test_alternatives(clause, texts):
    assert {chosen(clause, random.Random(seed)) for seed in range(40)} == texts


@pytest.mark.parametrize(
    ("said", "heard"),
    [("my sister", "your sister"), ("the job I wanted", "the job you wanted"), ("I'm a myth", "you're a myth")],
)
def test_fills_are_turned_to_the_other_person(said, heard):
    assert as_listener(said) == heard


def test_sentences_start_with_a_capital():
    assert sentence_case("my dog ran. he's back! is he?") == "My dog ran. He's back! Is he?"


@pytest.mark.parametrize(
    ("text", "opened"), [("My dog ran.", "So, my dog ran."), ("I'm tired.", "So, I'm tired."), ("In May", "So, in May")]
)
def test_openers_keep_only_the_capital_of_i(text, opened):
    assert with_opener("So,", text) == opened
