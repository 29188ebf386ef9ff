import html
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra import compose, initialize_config_dir
from markdown_it import MarkdownIt
from omegaconf import OmegaConf

from attune.config.params import check
from attune.generation.answer import write_replies
from attune.report.ratings import Answer, as_csv, items
from attune.report.read import read, read_curve, read_replies, read_rounds
from attune.report.samples import choose, quote
from attune.report.summary import summary
from attune.report.tables import escape, table
from attune.runtime.errors import UserError
from attune.runtime.io import write_json, write_text
from stages.report import main

ROOT = Path(__file__).parents[1]
HOSTILE = (
    "</svg><script>alert(1)</script>\n# heading | pipe\n\n```\n    code\n---\n<!-- \n[a](http://b.example) ![i](x) *b*"
)
PAGES = [Path("reports") / name for name in ("summary.md", "samples.md", "plots.html", "samples.html")]
CLASSIFIERS = {"accuracy": 81.4, "majority_accuracy": 66.0}
LABELS = ("sad", "joyful", "angry")


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return compose("config", overrides=list(overrides))


def params(*overrides):
    return check(OmegaConf.to_container(composed(*overrides), resolve=True), "conf")


def report(*arguments):
    """The stage in a process of its own, where hashes differ."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "stages.report", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=env)


def metrics(**values):
    return {"bleu_1": 12.3456, "bleu_4": 1.5, "rouge_l": 10.0, "dist_1": 30.0, "dist_2": 60.0} | {
        "reply_words": 9.04,
        "empty_share": 0.0,
        "repeated_share": 12.5,
        **{f"{side}_{key}": 0.5 for side in ("diff", "level", "reference_level") for key in ("er", "ip", "ex")},
        "bertscore_f1": 61.25,
        **values,
    }


def intervals(**others):
    """rouge_l and diff_er without differences to the reference, unless given."""
    return {"rouge_l.low": 9.0, "rouge_l.high": 11.0, "diff_er.low": 0.4, "diff_er.high": 0.58, **others}


def replies(text, count=12):
    context = [{"role": "user", "text": "My dog died.", "act": None}, {"role": "assistant", "text": "Oh!", "act": None}]
    return [
        {
            "id": f"test/{i}",
            "label": LABELS[i % 3],
            "context": [*context, {"role": "user", "text": f"She was {i}.", "act": None}],
            "reference": "I am so sorry.",
            "reply": f"{text} {i}" if text else "",
            "rejected": None,
            "reference_logp": None,
            "rejected_logp": None,
        }
        for i in range(count)
    ]


def write_scores(variant, count):
    values = {"level_er": 1, "level_ip": 0, "level_ex": 2, "rouge_l": 12.5, "bertscore_f1": 45.25}
    Path("data/scores").mkdir(parents=True, exist_ok=True)
    rows = [{"id": f"test/{i}", **values} for i in range(count)]
    pq.write_table(pa.Table.from_pylist(rows), f"data/scores/{variant}.parquet")


def curve(stage, name, points):
    rows = "".join(f"{step}\t{value}\n" for step, value in points)
    write_text(Path(f"reports/curves/{stage}/plots/metrics/{name}.tsv"), f"step\t{name.split('/')[-1]}\n{rows}")


def dpo_curves(key, end):
    # As the trainer writes them: a round begins with the history of those before it.
    steps = [1, *range(5, end + 1, 5)]
    curve(f"dpo/{key}", "loss", [(step, 0.7 - step / 100) for step in steps])
    for name in ("chosen", "rejected", "margins", "accuracies"):
        curve(f"dpo/{key}", f"rewards/{name}", [(step, step / 100) for step in sorted({*steps, end})])


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json(Path("metrics/data.json"), {"train_dialogues": 1200, "test_dialogues": 150})
    write_json(Path("metrics/base.json"), metrics())
    write_json(Path("metrics/sft.json"), metrics(bleu_1=20.0, preference_accuracy=71.25))
    write_json(Path("metrics/sft-dpo.json"), metrics(bleu_1=19.0, preference_accuracy=80.0))
    write_json(Path("metrics/base.signature.json"), {"bleu": "nrefs:1|case:lc", "tokeniser": "13a"})
    for name in ("base", "sft", "sft-dpo"):
        write_json(Path(f"metrics/mmlu/{name}.json"), {"acc": 25.5, "acc_stderr": 1.0, "acc_stem": 20.0})
        differences = {} if name == "base" else {"rouge_l.diff_low": -1.0, "rouge_l.diff_high": 1.0}
        write_json(Path(f"metrics/intervals/{name}.json"), intervals(**differences))
    shares = {f"{short}_{name}": value for short in ("er", "ip", "ex") for name, value in CLASSIFIERS.items()}
    write_json(Path("metrics/scorers/epitome.json"), shares)
    better = {"diff_er.diff_low": -0.2, "diff_er.diff_high": -0.1, "rouge_l.diff_low": 0.0, "rouge_l.diff_high": 2.0}
    write_json(Path("metrics/intervals/sft-dpo.json"), intervals(**better))
    for name in ("base", "sft", "sft-dpo"):
        write_replies(replies(f"Reply of {name}"), Path(f"data/replies/{name}.parquet"))
        write_scores(name, 12)
    curve("base", "loss", [(1, 9.0), (5, 7.5)])
    curve("sft", "loss", [(1, 6.5)])
    for i, key in enumerate(("e1", "e2", "e3"), start=1):
        shares = {"dropped": 0.0, "label_coverage": 90.625, "longer_rejected": 42.9688, "repeated_rejected": 17.1875}
        write_json(
            Path(f"metrics/pairs/{key}.json"), {"pairs": 1024, "chosen_words": 12.16, "rejected_words": i} | shares
        )
        dpo_curves(key, 8 * i)


def rows(text, corner, number=0):
    """The cells of the table whose first column is headed `corner`, by row name; of several the one of that number."""
    block = [b for b in text.split("\n\n") if b.startswith(f"| {corner}")][number]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {row[0]: row[1:] for row in cells}


def test_the_table_has_a_row_for_each_variant_in_their_order():
    main(params())
    found = rows(PAGES[0].read_text(), "variant", 2)
    assert list(found)[2:] == ["base", "sft", "sft-dpo"]
    assert found["variant"][0] == "BLEU-1 ↑" and found["variant"][-1] == "pref. acc. % ↑"
    assert found["base"] == ["12.35", "1.50", "10.00 ± 1.00", "30.00", "60.00", "9.0", "0.0", "12.5", "\u2013"]
    assert found["sft"][0] == "20.00" and found["sft"][-1] == "71.2"


def test_the_first_table_has_the_shape_of_empos():
    main(params())
    found = rows(PAGES[0].read_text(), "variant")
    assert found["variant"] == ["MMLU ↑", "diff-ER ↓", "diff-EX ↓", "diff-IP ↓", "F-BERT ↑"]
    # 1.96 standard errors of MMLU; half of 0.58 - 0.4.
    assert found["base"] == ["25.5 ± 2.0", "0.500 ± 0.090", "0.500", "0.500", "61.2"]


def test_a_star_says_that_a_difference_is_none_of_chance():
    main(params())
    first, second = (rows(PAGES[0].read_text(), "variant", number) for number in (0, 2))
    assert [first[name][1][-1] for name in ("base", "sft", "sft-dpo")] == ["0", "0", "*"]
    # An interval that begins at 0 holds it.
    assert [second[name][2][-1] for name in ("base", "sft", "sft-dpo")] == ["0", "0", "0"]
    assert "difference\nto base does not hold 0" in PAGES[0].read_text()


def test_the_summary_says_how_good_the_classifiers_are():
    main(params())
    assert "right on ER 81 % (guessing: 66 %), EX 81 %" in PAGES[0].read_text()


def test_mean_levels_are_told_for_people_and_models():
    write_json(Path("metrics/sft.json"), metrics(level_er=1.25, level_ip=0.0))
    main(params())
    found = rows(PAGES[0].read_text(), "variant", 1)
    assert found["variant"] == ["ER", "IP", "EX"]
    assert found["people"] == ["0.50", "0.50", "0.50"] and found["sft"] == ["1.25", "0.00", "0.50"]


def test_what_a_counsellor_does_is_shown_beside_people():
    chosen = params()
    scored = dict.fromkeys(chosen.variants, "models/behaviour")
    chosen = replace(
        chosen, behaviour=replace(chosen.behaviour, classifiers={"behaviour": "models/behaviour"}, variants=scored)
    )
    with pytest.raises(
        UserError, match=r"metrics/behaviour/base\.json is missing: run `dvc repro behaviour_scores@base`"
    ):
        main(chosen)
    human, ratio = {"behaviour_reference_reflections": 60.0}, {"behaviour_reflection_to_question": 1.5}
    for name in scored:
        write_json(Path(f"metrics/behaviour/{name}.json"), ratio | {"behaviour_reflections": 30.0} | human)
        bounds = {"behaviour_reflection_to_question.low": 1.0, "behaviour_reflection_to_question.high": 2.0}
        write_json(Path(f"metrics/intervals/behaviour/{name}.json"), bounds)
    with pytest.raises(UserError, match=r"scorers/behaviour\.json is missing: run `dvc repro behaviour@behaviour`"):
        main(chosen)
    measures = {f"{name}_{key}": value for name in ("behaviour", "miti") for key, value in CLASSIFIERS.items()}
    write_json(Path("metrics/scorers/behaviour.json"), measures | {"miti_accuracy": 72.6})
    main(chosen)
    assert (
        "right on held-out examples:\nbehaviours of replies 81 % (guessing: 66 %), adherence of sentences 73 % "
        "(guessing: 66 %)." in PAGES[0].read_text()
    )
    found = next(t for t in (rows(PAGES[0].read_text(), "variant", i) for i in range(4)) if "R:Q" in t["variant"])
    assert found["base"][:2] == ["1.50 ± 0.50", "30.0"] and found["people"][:2] == ["\u2013", "60.0"]


def test_what_people_prefer_is_shown_where_they_were_asked():
    """Of replies that are there: an answer to others does not count."""
    assert "What people prefer" not in summary(read(params()), params())
    a, b = (read_replies(Path(f"data/replies/{name}.parquet"), "") for name in ("sft", "sft-dpo"))
    answers = [
        Answer(rater, item.example, "sft", "sft-dpo", choice, "", "a", item.replies, "2024-01-31")
        for item, choice in zip(items(a, b), ["a", "tie", *["b"] * 10], strict=True)
        for rater in ("1f", "2e")
    ]
    answers.append(replace(answers[0], example="test/5", replies="gone"))
    write_text(Path("data/ratings.csv"), as_csv(answers))
    text = summary(read(params()), params())
    found = rows(text, "A, B")
    row = dict(zip(found["A, B"], found["sft, sft-dpo"], strict=True))
    assert row["A wins"] == "2" and row["ties"] == "2" and row["B wins"] == "20"
    assert row["dialogues"] == "12" and row["alpha"] == "1.00"
    assert row["win rate of B %"] == "87.5 (59.8 to 97.1)"


def test_the_summary_says_what_was_run():
    main(params("seed=7"))
    text = PAGES[0].read_text()
    assert "Corpus empatheticdialogues from data/sample, model tiny, seed 7." in text
    assert "1,200 train and 150 test dialogues, 12 of them answered" in text
    assert "pairs a round: 1,024 (e1), 1,024 (e2), 1,024 (e3)" in text
    # i am so sorry .
    assert "the human references have 5.0" in text
    assert rows(text, "round")["e2"] == ["1,024", "0.0", "90.6", "12.2", "2.0", "43.0", "17.2"]


def test_a_folder_outside_of_the_project_is_not_named(tmp_path):
    main(params(f"corpus.local_dir={tmp_path}"))
    assert all(str(tmp_path) not in path.read_text() for path in PAGES)
    assert "Corpus empatheticdialogues, model tiny" in PAGES[0].read_text()


@pytest.mark.parametrize(("present", "suggested"), [(0.1, "0.025"), (0.025, "0.1")])
def test_the_suggested_beta_is_another_one(present, suggested):
    main(params(f"dpo.beta={present}"))
    assert f"another beta (now {present})" in PAGES[0].read_text()
    assert f"\ndvc exp run -S dpo.beta={suggested}\n" in PAGES[0].read_text()


def test_the_columns_of_the_tables_are_padded():
    text = table("variant", {"a": {"x": 1234.5}, "a|long": {}}, {"x": ("X ↑", 1), "y": ("Y", 0)})
    assert text.splitlines() == [
        "| variant |     X ↑ | Y |",
        "|:--------|--------:|--:|",
        "| a       | 1,234.5 | \u2013 |",
        "| a\\|long |       \u2013 | \u2013 |",
    ]


def test_two_runs_write_the_same_bytes():
    main(params())
    first = [path.read_bytes() for path in PAGES]
    write_text(Path("params.yaml"), OmegaConf.to_yaml(composed()))
    assert report().returncode == 0
    assert [path.read_bytes() for path in PAGES] == first


def test_show_prints_the_summary_and_writes_nothing():
    missing = report("--show")
    assert (missing.returncode, missing.stderr) == (
        1,
        "error: reports/summary.md is missing: run `dvc repro report`\n",
    )
    write_text(PAGES[0], "# Summary \u2013\n")
    assert report("--show").stdout == "# Summary \u2013\n"
    assert not PAGES[1].exists()


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("metrics/data.json", "prepare"),
        ("metrics/sft.json", "evaluate@sft"),
        ("metrics/pairs/e2.json", "pairs@e2"),
        ("metrics/intervals/sft.json", "intervals@sft"),
        ("metrics/mmlu/sft.json", "mmlu@sft"),
        ("metrics/scorers/epitome.json", "epitome"),
        ("data/replies/sft-dpo.parquet", "generate@sft-dpo"),
        ("data/scores/sft.parquet", "evaluate@sft"),
        ("reports/curves/base/plots/metrics/loss.tsv", "base"),
        ("reports/curves/sft/plots/metrics/loss.tsv", "sft"),
        ("reports/curves/dpo/e3/plots/metrics/rewards/chosen.tsv", "dpo@e3"),
    ],
)
@pytest.mark.parametrize("content", [None, "\x00 no such file"])
def test_a_file_that_is_missing_or_broken_is_named_with_its_stage(path, stage, content):
    Path(path).unlink()
    if content is not None:
        Path(path).write_text(content)
    with pytest.raises(UserError, match=rf"^{re.escape(path)} (is missing|cannot be read).*`dvc repro .*{stage}`$"):
        main(params())
    assert not any(page.exists() for page in PAGES)


@pytest.mark.parametrize("content", ["[1]", '{"bleu_1": "high"}'])
def test_metrics_that_are_no_numbers(content):
    Path("metrics/sft.json").write_text(content)
    with pytest.raises(UserError, match=r"metrics/sft\.json cannot be read \(expected an object"):
        main(params())


def test_replies_without_rows():
    write_replies([], Path("data/replies/sft.parquet"))
    with pytest.raises(UserError, match=r"sft\.parquet cannot be read \(there are no rows\)"):
        main(params())


def test_a_row_that_is_no_point_of_a_curve():
    curve("sft", "loss", [(1, 6.5), ("two", 6.4)])
    with pytest.raises(UserError, match="line 3: expected a step and a number"):
        read_curve(Path("reports/curves/sft"), "loss", "sft")


def test_a_hub_model_has_no_curve_of_its_own():
    shutil.rmtree("reports/curves/base")
    Path("reports/curves/base").mkdir()
    main(params("model.hub_id=some/model", "model.revision=main"))
    assert "base: " not in loss_description() and "sft: 6.5 at step 1" in loss_description()


def loss_description():
    return ElementTree.fromstring(PAGES[2].read_text()).findtext(".//desc[@id='f1-desc']")


def test_the_rounds_lie_on_one_axis():
    joined = read_rounds(params().dpo.rounds)
    assert joined.ends == {"e1": 8, "e2": 16, "e3": 24}
    # Step 8, where the first round ended, is in its own file only.
    assert [step for step, _ in joined.curves["rewards/chosen"]] == [1, 5, 8, 10, 15, 16, 20, 24]
    assert joined.curves["rewards/chosen"][-1] == (24, 0.24)


def test_a_round_whose_last_step_is_in_the_next_ones_history():
    for end, key in ((10, "e1"), (20, "e2"), (30, "e3")):
        dpo_curves(key, end)
    joined = read_rounds(params().dpo.rounds)
    assert [step for step, _ in joined.curves["rewards/margins"]] == [1, 5, 10, 15, 20, 25, 30]


def test_a_round_that_starts_anew_is_put_behind_the_one_before():
    dpo_curves("e2", 8)
    joined = read_rounds(params("rounds.e2.init=models/sft", "~rounds.e3").dpo.rounds)
    assert joined.ends == {"e1": 8, "e2": 16}
    assert [step for step, _ in joined.curves["rewards/chosen"]] == [1, 5, 8, 9, 13, 16]


def test_the_samples_are_ten_and_show_every_variant():
    main(params())
    text = PAGES[1].read_text()
    assert text.splitlines()[2].startswith("Replies headed 'Written by a machine' come from language models, unchecked")
    assert "none is counsel" in text
    headings = re.findall(r"^## (\d+)\. (\w+) \(test/(\d+)\)$", text, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in headings] == list(range(1, 11))
    assert all(LABELS[int(i) % 3] == label for _, label, i in headings)
    for _, _, i in headings:
        for name in ("base", "sft", "sft-dpo"):
            assert f"**Written by a machine: {name}**\n\n> Reply of {name} {i}\n" in text
        assert f"> **user:** She was {i}.\n" in text


def test_the_choice_is_spread_over_the_labels_and_keyed_by_seed_and_id():
    labels = {f"{i}": "common" for i in range(100)} | {f"rare{i}": f"label{i}" for i in range(6)}
    chosen = choose(labels, 13)
    assert len(chosen) == 10 and {f"rare{i}" for i in range(6)} <= set(chosen)
    assert choose(dict(reversed(labels.items())), 13) == chosen != choose(labels, 14)
    # An example that was not chosen has no say.
    other = next(name for name in labels if name not in chosen)
    assert choose({name: label for name, label in labels.items() if name != other}, 13) == chosen


def test_an_example_that_a_variant_lacks_is_not_shown():
    write_replies(replies("Few", count=2), Path("data/replies/sft.parquet"))
    main(params())
    assert PAGES[1].read_text().count("\n## ") == 2


def test_hostile_replies_stay_texts():
    main(params())
    tame = PAGES[2].read_bytes()
    write_json(Path("metrics/base.signature.json"), {"bleu": "nrefs:1|case:lc", "tokeniser": "13a"})
    for name in ("base", "sft", "sft-dpo"):
        write_replies(replies(HOSTILE), Path(f"data/replies/{name}.parquet"))
    main(params())
    rendered = render(PAGES[1].read_text())
    # A heading a sample and the title; a quote for each of three turns, the reference and three replies.
    assert (rendered.count("<h1>"), rendered.count("<h2>")) == (1, 10)
    # Turns stand in one quote.
    assert rendered.count("<blockquote>") == 10 * 5
    assert not re.search("<(script|svg|pre|code|hr|img|a|table)", rendered)
    assert rendered.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 30
    assert PAGES[2].read_bytes() == tame


def render(markdown):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def shown(markdown):
    """What a reader sees of a quote: its lines of text. Fails where anything but text is in it."""
    match = re.fullmatch(r"<blockquote>\n<p>(.*)</p>\n</blockquote>\n", render(markdown), flags=re.DOTALL)
    lines = match[1].split("<br />\n")
    assert not any("<" in line for line in lines)
    return [html.unescape(line) for line in lines]


@pytest.mark.parametrize(
    "text",
    [
        *("- item", "+ item", "* item", "1. one", "12) twelve", "# h", "===", "---", "***", "> quote", "| a | b |"),
        *("&lt;b&gt; &#39;", "<b>", "<http://a.example>", "`code`", "``` py", "~~~", "~~gone~~", "$x$", "a_b_c"),
        *("[x]: y", "www.a.example", "http://a.example", "ends in \\", "\\", "!", "3.5 of 10", "-", "=", "1."),
        "été 😀 👩\u200d🚀 日本",
    ],
)
def test_a_line_is_shown_as_it_is(text):
    assert shown(quote(text)) == [text]
    assert shown(quote(f"first\n{text}\r\n\n{text}\u2028last")) == ["first", text, text, "last"]


def test_any_line_is_shown_as_it_is():
    draw = random.Random(13)
    for _ in range(2000):
        text = "".join(draw.choices("\\`*_{}[]()<>#+-.!|~$&:;=\"'/@^%?, 1aw", k=draw.randint(1, 12)))
        if text.strip():
            assert shown(quote(f"{text}\n{text}")) == [text.strip()] * 2, repr(text)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_reply_is_named(text):
    assert quote(text) == "> *(empty)*"
    assert quote("*(empty)*") != "> *(empty)*"


def test_invisible_characters_are_not_passed_on():
    assert escape("a\x00\x1b[31m\u202eb\xa0c") == "a\ufffd\ufffd\\[31m\ufffdb c"


class References(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.targets, self.ids = set(), [], []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        for key, value in attributes:
            if key in ("src", "href", "srcset", "data", "action"):
                self.targets.append(value)
            elif key == "id":
                self.ids.append(value)
            elif not key.startswith("http") and value and "url(" in value:
                self.targets += re.findall(r"url\(([^)]*)\)", value)


def test_the_page_refers_to_nothing_outside_itself():
    main(params())
    text, seen = PAGES[2].read_text(), References()
    seen.feed(text)
    assert len(seen.ids) == len(set(seen.ids))
    assert seen.targets and all(target[:1] == "#" and target[1:] in set(seen.ids) for target in seen.targets)
    assert "://" not in text and "@import" not in text and "url(" not in text.split("</style>")[0]
    assert not seen.tags & {"script", "link", "iframe", "object", "embed", "img", "base", "form"}


def test_every_figure_has_a_heading_a_caption_and_its_content_in_words():
    main(params())
    # Well-formed, so an XML parser reads it, too.
    page = ElementTree.fromstring(PAGES[2].read_text())
    sections = page.findall(".//section")
    assert len(sections) == 6
    for section in sections:
        svg = section.find("figure/svg")
        named = {element.get("id"): element.text for element in svg[:2]}
        assert svg.get("role") == "img" and svg.get("aria-labelledby").split() == list(named)
        assert all(named.values()) and section.findtext("h2") and section.findtext("figure/figcaption")
    assert loss_description() == "base: 9 at step 1, 7.5 at step 5; sft: 6.5 at step 1, 6.5 at step 1; " + (
        "dpo: 0.69 at step 1, 0.5 at step 20."
    )
    assert "pref. acc. % ↑: base \u2013, sft 71.2, sft-dpo 80.0" in page.findtext(".//desc[@id='f5-desc']")


def test_hostile_names_stay_texts():
    name = '<b id="f1-title">&amp;$x$_{'
    given = params()
    for folder in (".", "mmlu", "intervals"):
        shutil.copy(f"metrics/{folder}/sft.json", f"metrics/{folder}/{name}.json")
    shutil.copy("metrics/base.signature.json", f"metrics/{name}.signature.json")
    for folder in ("replies", "scores"):
        shutil.copy(f"data/{folder}/sft.parquet", f"data/{folder}/{name}.parquet")
    main(type(given)(**{**vars(given), "variants": {name: given.variants["sft"]}}))
    page = ElementTree.fromstring(PAGES[2].read_text())
    assert page.find(".//b") is None and f"BLEU-1 ↑: {name} 20.00" in page.findtext(".//desc[@id='f5-desc']")
    assert name in html.unescape(render(PAGES[1].read_text())) and name in html.unescape(render(PAGES[0].read_text()))


def test_curves_that_left_the_numbers_are_still_drawn():
    curve("sft", "loss", [(1, 6.5), (5, "nan"), (10, "inf")])
    main(params())
    ElementTree.fromstring(PAGES[2].read_text())


def test_the_readers_own_matplotlib_settings_do_not_show(monkeypatch):
    import matplotlib

    main(params())
    before = PAGES[2].read_bytes()
    monkeypatch.setitem(matplotlib.rcParams, "xtick.major.width", 30)
    main(params())
    assert PAGES[2].read_bytes() == before
    assert matplotlib.rcParams["xtick.major.width"] == 30
