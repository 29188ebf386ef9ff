"""The pages of stage `report`."""

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

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import LABELS, ROOT, replies, write_curve, write_curves
from hydra import compose, initialize_config_dir
from markdown_it import MarkdownIt
from omegaconf import OmegaConf

from attune.__main__ import main as command
from attune.config.params import check
from attune.generation.answer import write_replies
from attune.report import curves, movement, results
from attune.report.first_screen import first_screen
from attune.report.movement import unhealthy
from attune.report.ratings import Answer, as_csv, items
from attune.report.read import DPO_CURVES, DpoCurves, read, read_curve, read_dpo
from attune.report.samples import choose, quote
from attune.report.summary import summary
from attune.report.tables import escape, table
from attune.runtime.errors import UserError
from attune.runtime.io import write_json, write_text
from stages.report import main

HOSTILE = (
    "</svg><script>alert(1)</script>\n# heading | pipe\n\n```\n    code\n---\n<!-- \n[a](http://b.example) ![i](x) *b*"
)
SUMMARY, SAMPLES, REPORT, BROWSER = PAGES = [
    Path("reports") / name for name in ("summary.md", "samples.md", "report.html", "samples.html")
]
MMLU = {"answer_logp": -1.5, "answer_margin": 0.1}
QUALITY = {"accuracy": 81.4, "majority_accuracy": 66.0}
VARIANTS = ("base", "sft", "sft-dpo")


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return compose("config", overrides=list(overrides))


def params(*overrides):
    return check(OmegaConf.to_container(composed(*overrides), resolve=True), "conf")


def report():
    """The stage in a process of its own, with other hashes of strings."""
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1", "PYTHONHASHSEED": "7"}
    return subprocess.run([sys.executable, "-m", "stages.report"], capture_output=True, encoding="utf-8", env=env)


def metrics(**values):
    return {"bleu_1": 12.3456, "bleu_4": 1.5, "rouge_l": 10.0, "dist_1": 30.0, "dist_2": 60.0} | {
        "reply_words": 9.04,
        "empty_share": 0.0,
        "repeated_share": 12.5,
        **{f"{side}_{key}": 0.5 for side in ("diff", "level", "reference_level") for key in ("er", "ip", "ex")},
        "bertscore_f1": 61.25,
        **values,
    }


def write_by_scorer(file, variant, values):
    """The values of the levels in the file of epitome, the others in that of text."""
    levels = {key: value for key, value in values.items() if key.startswith(("diff_", "level_", "reference_level_"))}
    write_json(file("epitome", variant).path, levels)
    write_json(file("text", variant).path, {key: value for key, value in values.items() if key not in levels})


def write_metrics(variant, **values):
    write_by_scorer(results.metrics_file, variant, metrics(**values))


def write_intervals(variant, **ends):
    """rouge_l and diff_er without differences to the reference, unless given."""
    known = {"rouge_l.low": 9.0, "rouge_l.high": 11.0, "diff_er.low": 0.4, "diff_er.high": 0.58}
    write_by_scorer(results.intervals_file, variant, known | ends)


def write_scores(variant, count):
    levels = {"level_er": 1, "level_ip": 0, "level_ex": 2}
    text = {"rouge_l": 12.5, "bertscore_f1": 45.25, "preference_accuracy": 100.0}
    for scorer, values in (("epitome", levels), ("text", text)):
        path = results.scores_file(scorer, variant).path
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{"id": f"test/{i}", **values} for i in range(count)]), path)


def write_signatures(variant):
    write_json(results.signature_file("text", variant).path, {"bleu": "nrefs:1|case:lc", "tokeniser": "13a"})
    write_json(results.signature_file("epitome", variant).path, {"diff": "mean squared"})


@pytest.fixture(autouse=True)
def run(tmp_path, monkeypatch):
    """The files of a run of three variants."""
    monkeypatch.chdir(tmp_path)
    write_json(results.data_file().path, {"train_dialogues": 1200, "test_dialogues": 150})
    write_metrics("base")
    write_metrics("sft", bleu_1=20.0, preference_accuracy=71.25)
    write_metrics("sft-dpo", bleu_1=19.0, preference_accuracy=80.0)
    write_intervals("base")
    write_intervals("sft", **{"rouge_l.diff_low": -1.0, "rouge_l.diff_high": 1.0})
    better = {"diff_er.diff_low": -0.2, "diff_er.diff_high": -0.1, "rouge_l.diff_low": 0.0, "rouge_l.diff_high": 2.0}
    write_intervals("sft-dpo", **better)
    quality = {f"{short}_{name}": value for short in ("er", "ip", "ex") for name, value in QUALITY.items()}
    write_json(results.quality_file("epitome").path, quality)
    for name in VARIANTS:
        write_json(results.mmlu_file(name).path, MMLU | {"acc": 25.5, "acc_stderr": 1.0, "acc_stem": 20.0})
        write_json(results.intervals_file("mmlu", name).path, {})
        write_replies(replies(f"Reply of {name}"), results.replies_file(name).path)
        write_scores(name, 12)
        write_signatures(name)
    for i, key in enumerate(("e1", "e2", "e3"), start=1):
        shares = {"dropped": 0.0, "label_coverage": 90.625, "longer_rejected": 42.9688, "repeated_rejected": 17.1875}
        write_json(results.pairs_file(key).path, {"pairs": 1024, "chosen_words": 12.16, "rejected_words": i} | shares)
        write_curves(key, 8 * i)
    write_text(results.sft_curve_file("sft", "loss").path, "step\tloss\n1\t3.5\n8\t2.5\n")


def rows(text, corner, heading=""):
    """The cells of the table that has these headings, in its first column and anywhere, by row name."""
    block = next(b for b in text.split("\n\n") if b.startswith(f"| {corner}") and heading in b.splitlines()[0])
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
    return {row[0]: row[1:] for row in cells}


def test_tables_of_the_variants():
    main(params())
    text = SUMMARY.read_text()
    overlap = rows(text, "variant", "BLEU-1")
    assert list(overlap)[2:] == list(VARIANTS)
    assert overlap["variant"][0] == "BLEU-1 ↑" and overlap["variant"][-1] == "pref. acc. % ↑"
    assert overlap["base"] == ["12.35", "1.50", "10.00 ± 1.00", "30.00", "60.00", "9.0", "0.0", "12.5", *["\u2013"] * 3]
    assert overlap["sft"][0] == "20.00" and overlap["sft"][-1] == "71.2"
    empathy = rows(text, "variant", "MMLU")
    assert empathy["variant"] == ["MMLU ↑", "diff-ER ↓", "diff-EX ↓", "diff-IP ↓", "F-BERT ↑"]
    # 1.96 standard errors of MMLU; half of 0.58 - 0.4.
    assert empathy["base"] == ["25.5 ± 2.0†", "0.500 ± 0.090", "0.500", "0.500", "61.2"]
    assert "Accuracy of the EPITOME classifiers on held-out posts: ER 81 % (majority class: 66 %), EX 81 %" in text


def test_what_is_at_chance_is_marked_and_said():
    write_json(results.mmlu_file("sft").path, MMLU | {"acc": 29.5, "acc_stderr": 1.0})
    bounds = {"acc.diff_low": 1.0, "acc.diff_high": 7.0, "answer_margin.low": 0.05, "answer_margin.high": 0.15}
    write_json(results.intervals_file("mmlu", "sft").path, bounds)
    main(params())
    text = SUMMARY.read_text()
    knowledge = rows(text, "variant", "MMLU log-prob")
    assert knowledge["variant"] == ["MMLU ↑", "MMLU log-prob ↑", "MMLU margin ↑"]
    assert knowledge["base"] == ["25.5 ± 2.0†", "-1.500", "0.100"]
    assert knowledge["sft"] == ["29.5 ± 2.0*", "-1.500", "0.100 ± 0.050"]
    assert "**At chance on MMLU: base, sft-dpo.**" in text and "`-S mmlu.form=cloze` asks" in text
    main(params("mmlu.form=cloze"))
    assert "MMLU by cloze." in SUMMARY.read_text() and "-S mmlu.form=cloze" not in SUMMARY.read_text()
    screen = first_screen(params())
    assert "25.5†" in screen and "29.5†" not in screen and "†: at chance." in screen


def test_a_star_means_that_the_interval_excludes_0():
    main(params())
    text = SUMMARY.read_text()
    diff_er, rouge = ([rows(text, "variant", h)[name][i] for name in VARIANTS] for h, i in (("MMLU", 1), ("BLEU", 2)))
    assert [cell[-1] for cell in diff_er] == ["0", "0", "*"]
    # An interval from 0 on includes it.
    assert [cell[-1] for cell in rouge] == ["0", "0", "0"]
    assert "Star: the 95 % interval of the paired difference to the reference variant\n(base) excludes 0" in text


def test_mean_levels_of_people_and_models():
    write_metrics("sft", level_er=1.25, level_ip=0.0)
    main(params())
    levels = rows(SUMMARY.read_text(), "variant", " ER ")
    assert levels["variant"] == ["ER", "IP", "EX"]
    assert levels["people"] == ["0.50", "0.50", "0.50"] and levels["sft"] == ["1.25", "0.00", "0.50"]


def test_behaviours_of_a_counsellor():
    default = params()
    used = default.classifiers | {"behaviour": default.classifiers["epitome"]}
    chosen = replace(default, classifiers=used, scorers=[*default.scorers, "behaviour"])
    missing = r"metrics/behaviour/base\.json is missing: run `dvc repro scores@base-behaviour`"
    with pytest.raises(UserError, match=missing):
        main(chosen)
    values = {"behaviour_reflection_to_question": 1.5, "behaviour_reflections": 30.0}
    ends = {"behaviour_reflection_to_question.low": 1.0, "behaviour_reflection_to_question.high": 2.0}
    for name in VARIANTS:
        path = results.metrics_file("behaviour", name).path
        write_json(path, values | {"behaviour_reference_reflections": 60.0})
        write_json(results.intervals_file("behaviour", name).path, ends)
        path = results.scores_file("behaviour", name).path
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{"id": "test/0", "behaviour_reflections": 100.0}]), path)
    write_json(results.signature_file("behaviour", "base").path, {})
    with pytest.raises(
        UserError, match=r"classifiers/behaviour\.json is missing: run `dvc repro classifier@behaviour`"
    ):
        main(chosen)
    quality = {f"{name}_{key}": value for name in ("behaviour", "miti") for key, value in QUALITY.items()}
    write_json(results.quality_file("behaviour").path, quality | {"miti_accuracy": 72.6})
    main(chosen)
    text = SUMMARY.read_text()
    assert "\nbehaviours of replies 81 % (majority class: 66 %), adherence of sentences 73 % (majority" in text
    found = rows(text, "variant", "R:Q")
    assert found["base"][:2] == ["1.50 ± 0.50", "30.0"] and found["people"][:2] == ["\u2013", "60.0"]


def test_win_rates_count_answers_to_the_current_replies():
    assert "What people prefer" not in summary(read(params()), params())
    a, b = (results.read_replies(name) for name in ("sft", "sft-dpo"))
    answers = [
        Answer(rater, item.example, "sft", "sft-dpo", choice, "", "a", item.replies, "2024-01-31")
        for item, choice in zip(items(a, b), ["a", "tie", *["b"] * 10], strict=True)
        for rater in ("1f", "2e")
    ]
    answers.append(replace(answers[0], example="test/5", replies="gone"))
    write_text(results.RATINGS, as_csv(answers))
    found = rows(summary(read(params()), params()), "A, B")
    row = dict(zip(found["A, B"], found["sft, sft-dpo"], strict=True))
    assert row["A wins"] == "2" and row["ties"] == "2" and row["B wins"] == "20"
    assert row["dialogues"] == "12" and row["alpha"] == "1.00"
    assert row["win rate of B %"] == "87.5 (59.8 to 97.1)"


def test_what_was_run(tmp_path):
    main(params("seed=7"))
    text = SUMMARY.read_text()
    assert "Corpus empatheticdialogues from data/sample, model smollm2, seed 7." in text
    assert "1,200 train and 150 test dialogues, 12 test examples answered" in text
    assert "pairs per round: 1,024 (e1), 1,024 (e2), 1,024 (e3)" in text
    # i am so sorry .
    assert "human references: 5.0" in text
    assert rows(text, "round")["e2"] == ["1,024", "0.0", "90.6", "12.2", "2.0", "43.0", "17.2"]
    # A folder outside of the project is not shown.
    main(params(f"corpus.local_dir={tmp_path}"))
    assert all(str(tmp_path) not in path.read_text() for path in PAGES)
    assert "Corpus empatheticdialogues, model smollm2" in SUMMARY.read_text()


@pytest.mark.parametrize(("present", "suggested"), [(0.1, "0.025"), (0.025, "0.1")])
def test_the_suggested_beta_differs(present, suggested):
    chosen = params(f"dpo.beta={present}")
    text = summary(read(chosen), chosen)
    assert f"another beta (now {present})" in text and f"\ndvc exp run -S dpo.beta={suggested}\n" in text


def test_table_is_padded_and_escaped():
    text = table("variant", {"a": {"x": 1234.5}, "a|long": {}}, {"x": ("X ↑", 1), "y": ("Y", 0)})
    assert text.splitlines() == [
        "| variant |     X ↑ | Y |",
        "|:--------|--------:|--:|",
        "| a       | 1,234.5 | \u2013 |",
        "| a\\|long |       \u2013 | \u2013 |",
    ]


def test_equal_bytes_in_another_process():
    main(params())
    first = [path.read_bytes() for path in PAGES]
    write_text(Path("params.yaml"), OmegaConf.to_yaml(composed(), resolve=True))
    assert report().returncode == 0
    assert [path.read_bytes() for path in PAGES] == first


def preference(diff, low, high):
    """The intervals of sft-dpo with this difference to base in preference accuracy."""
    ends = {
        "preference_accuracy.diff": diff,
        "preference_accuracy.diff_low": low,
        "preference_accuracy.diff_high": high,
    }
    write_intervals("sft-dpo", **ends)


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((8.75, 0.1, 17.4), "71.2 %: better (+8.8 [0.1, 17.4])"),
        ((8.75, 0.0, 17.5), "71.2 %: no difference shown (+8.8 [0.0, 17.5])"),
        ((-8.75, -17.4, -0.1), "71.2 %: worse (-8.8 [-17.4, -0.1])"),
    ],
)
def test_the_verdict_is_that_of_the_interval(interval, words):
    write_metrics("base", preference_accuracy=71.25)
    write_metrics("sft", preference_accuracy=71.25)
    write_metrics("sft-dpo", preference_accuracy=80.0, repeated_share=3.125)
    preference(*interval)
    text = " ".join(first_screen(params()).split("\n\n")[0].split())
    begin = "sft-dpo prefers the human reply to its opposite in 80.0 % of test dialogues, base in "
    same = "sft in 71.2 %: no difference shown (+0.0 [0.0, 0.0])"
    assert text == f"{begin}{words}; {same}. Chance is 50 %. 3.1 % of its replies repeat another one (of base: 12.5 %)."


def test_the_verdict_also_compares_with_the_model_that_dpo_starts_from():
    write_metrics("base", preference_accuracy=50.0)
    preference(25.0, 10.0, 40.0)
    for name, right in {"sft": 3, "sft-dpo": 9}.items():
        write_metrics(name, preference_accuracy=100 * right / 12)
        shown = {"rouge_l": 12.5, "bertscore_f1": 45.25}
        scores = [{"id": f"test/{i}", **shown, "preference_accuracy": 100.0 * (i < right)} for i in range(12)]
        pq.write_table(pa.Table.from_pylist(scores), results.scores_file("text", name).path)
    text = " ".join(first_screen(params()).split("\n\n")[0].split())
    assert "base in 50.0 %: better (+25.0 [10.0, 40.0]); sft in 25.0 %: better (+50.0 [25.0, 75.0])" in text


def test_the_first_screen_fits_a_terminal_and_has_the_columns_that_were_measured():
    write_metrics("sft", preference_accuracy=71.25, level_er=1.25)
    screen = first_screen(params())
    table = [line.split() for line in screen.split("\n\n")[1].splitlines()]
    assert " ".join(table[0]) == "variant accuracy % repeated % words F-BERT ER IP EX MMLU"
    assert table[2] == ["sft", "71.2", "12.5", "9.0", "61.2", "1.25", "0.50", "0.50", "25.5†"]
    assert table[4] == ["people", *["\u2013"] * 4, "0.50", "0.50", "0.50", "\u2013"]
    # The reference has no pairs, so that nothing is compared.
    verdict = " ".join(screen.split("\n\n")[0].split())
    assert verdict.startswith(
        "sft-dpo prefers the human reply to its opposite in 80.0 % of test dialogues; sft in 71.2"
    )
    for name in VARIANTS:
        write_by_scorer(results.metrics_file, name, {"reply_words": 9.0})
    assert first_screen(params()).split("\n\n")[0].split()[:2] == ["variant", "words"]
    six = {f"sft-dpo-{i}": params().variants["sft"] for i in range(6)}
    for name in six:
        write_metrics(name, preference_accuracy=80.0)
        write_intervals(name, **{f"preference_accuracy.{end}": -12.5 for end in ("diff", "diff_low", "diff_high")})
        write_json(results.mmlu_file(name).path, {"acc": 25.5, "acc_stderr": 1.0})
        write_json(results.intervals_file("mmlu", name).path, {})
        write_replies(replies("Reply \x1b[31m of many words " * 20), results.replies_file(name).path)
        write_scores(name, 12)
        write_signatures(name)
    chosen = replace(params(), variants=six, evaluate=replace(params().evaluate, reference="sft-dpo-0"))
    lines = first_screen(chosen).splitlines()
    assert len(lines) <= 30 and max(map(len, lines)) <= 80
    # Two contexts, two replies to each, and what to look out for.
    assert "\x1b" not in "".join(lines) and sum(line.endswith(" …") for line in lines) == 5


def test_the_first_screen_has_two_replies_before_and_after_and_the_next_command():
    shown = first_screen(params("dpo.beta=0.025")).split("\n\n")
    _, *contexts = shown[2].split("somebody: ")
    assert len(contexts) == 2
    for context in contexts:
        number = re.match(r"She was (\d+)\.\n", context)[1]
        assert context.splitlines()[1:] == [f"  {name}: Reply of {name} {number}" for name in ("base", "sft-dpo")]
    assert re.findall(r"^  (.*?)  ", shown[3], re.MULTILINE) == [
        "python -m attune chat sft-dpo",
        "dvc exp run -S dpo.beta=0.1",
    ]
    # Where the last variant is the reference, the first one is before it.
    last = replace(params(), evaluate=replace(params().evaluate, reference="sft-dpo"))
    assert "  base: Reply of base" in first_screen(last)
    alone = replace(last, variants={"sft-dpo": last.variants["sft-dpo"]})
    assert first_screen(alone).count("Reply of") == 2


def test_show_names_the_stage_of_a_missing_file(capsys):
    write_text(Path("params.yaml"), OmegaConf.to_yaml(composed(), resolve=True))
    command(["show"])
    assert capsys.readouterr().out == first_screen(params())
    results.mmlu_file("sft").path.unlink()
    with pytest.raises(SystemExit):
        command(["show"])
    assert capsys.readouterr().err == "error: metrics/mmlu/sft.json is missing: run `dvc repro mmlu@sft`\n"


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("metrics/data.json", "prepare"),
        ("metrics/text/sft.json", "evaluate@sft"),
        ("metrics/epitome/sft.json", "scores@sft-epitome"),
        ("metrics/epitome/base.signature.json", "scores@base-epitome"),
        ("metrics/pairs/e2.json", "pairs@e2"),
        ("metrics/intervals/epitome/sft.json", "intervals@sft-epitome"),
        ("metrics/mmlu/sft.json", "mmlu@sft"),
        ("metrics/classifiers/epitome.json", "classifier@epitome"),
        ("data/replies/sft-dpo.parquet", "generate@sft-dpo"),
        ("data/scores/text/sft.parquet", "evaluate@sft"),
        ("data/scores/epitome/sft.parquet", "scores@sft-epitome"),
        ("reports/curves/dpo/e3/plots/metrics/rewards/chosen.tsv", "dpo@e3"),
    ],
)
@pytest.mark.parametrize("content", [None, "\x00 no such file"])
def test_missing_or_invalid_file_is_named_with_its_stage(path, stage, content):
    Path(path).unlink()
    if content is not None:
        Path(path).write_text(content)
    with pytest.raises(UserError, match=rf"^{re.escape(path)} (is missing|cannot be read).*`dvc repro .*{stage}`$"):
        main(params())
    assert not any(page.exists() for page in PAGES)


@pytest.mark.parametrize("content", ["[1]", '{"bleu_1": "high"}'])
def test_metrics_that_are_not_numbers(content):
    artifact = results.metrics_file("text", "sft")
    artifact.path.write_text(content)
    with pytest.raises(UserError, match=r"sft\.json cannot be read \(expected an object"):
        results.read_metrics(artifact)


def test_replies_without_rows():
    write_replies([], results.replies_file("sft").path)
    with pytest.raises(UserError, match=r"sft\.parquet cannot be read \(there are no rows\)"):
        results.read_replies("sft")


def test_invalid_row_of_a_curve():
    write_curve("e1", DPO_CURVES[0], [(1, 6.5), ("two", 6.4)])
    with pytest.raises(UserError, match="line 3: expected a step and a number"):
        read_curve(results.dpo_curve_file("e1", DPO_CURVES[0]))


def test_rounds_share_an_axis_of_steps():
    joined = read_dpo(params().rounds)
    assert joined.ends == {"e1": 8, "e2": 16, "e3": 24}
    # Step 8, the end of the first round, is in the file of that round only.
    assert [step for step, _ in joined.curves["rewards/chosen"]] == [1, 5, 8, 10, 15, 16, 20, 24]
    assert joined.curves["rewards/chosen"][-1] == (24, 0.24)


def test_last_step_of_a_round_in_the_history_of_the_next():
    for end, key in ((10, "e1"), (20, "e2"), (30, "e3")):
        write_curves(key, end)
    joined = read_dpo(params().rounds)
    assert [step for step, _ in joined.curves["rewards/rejected"]] == [1, 5, 10, 15, 20, 25, 30]


def test_round_that_continues_no_other_is_shifted():
    write_curves("e2", 8)
    joined = read_dpo(params("rounds.e2.init=models/sft", "~rounds.e3").rounds)
    assert joined.ends == {"e1": 8, "e2": 16}
    assert [step for step, _ in joined.curves["rewards/chosen"]] == [1, 5, 8, 9, 13, 16]


def test_curves_for_dvc_plots_are_one_file_whatever_the_rounds():
    write_curves("e2", 8)
    joined = read_dpo(params("rounds.e2.init=models/sft", "~rounds.e3").rounds)
    lines = curves.dpo_csv(joined).splitlines()
    assert lines[0] == "step,chosen,rejected,accuracy,loss"
    assert [line.split(",")[0] for line in lines[1:]] == ["1", "5", "8", "9", "13", "16"]
    assert lines[3] == "8,0.08,0.08,0.08,0.08"
    assert curves.dpo_csv(DpoCurves()).splitlines() == lines[:1]
    both = curves.sft_csv({"sft": [(1, 3.5), (8, 2.5)], "sft-high": [(1, 3.0)]})
    assert both.splitlines() == ["adapter,step,loss", "sft,1,3.5", "sft,8,2.5", "sft-high,9,3.0"]
    assert curves.sft_csv({}) == "adapter,step,loss\n"


def test_ten_samples_with_every_variant():
    main(params())
    text = SAMPLES.read_text()
    assert text.splitlines()[2].startswith("Replies headed 'Written by a machine' come from language models, unchecked")
    assert "none is counsel" in text
    headings = re.findall(r"^## (\d+)\. (\w+) \(test/(\d+)\)$", text, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in headings] == list(range(1, 11))
    assert all(LABELS[int(i) % 3] == label for _, label, i in headings)
    for _, _, i in headings:
        for name in VARIANTS:
            assert f"**Written by a machine: {name}**\n\n> Reply of {name} {i}\n" in text
        assert f"> **user:** She was {i}.\n" in text


def test_choice_of_samples():
    labels = {f"{i}": "common" for i in range(100)} | {f"rare{i}": f"label{i}" for i in range(6)}
    chosen = choose(labels, 13)
    assert len(chosen) == 10 and {f"rare{i}" for i in range(6)} <= set(chosen)
    assert choose(dict(reversed(labels.items())), 13) == chosen != choose(labels, 14)
    # An example that is not chosen has no influence.
    other = next(name for name in labels if name not in chosen)
    assert choose({name: label for name, label in labels.items() if name != other}, 13) == chosen


def test_example_that_a_variant_lacks_is_left_out():
    write_replies(replies("Few", count=2), results.replies_file("sft").path)
    main(params())
    assert SAMPLES.read_text().count("\n## ") == 2


def test_hostile_replies_are_text():
    for name in VARIANTS:
        write_replies(replies(HOSTILE), results.replies_file(name).path)
    main(params())
    rendered = render(SAMPLES.read_text())
    # A heading per sample and the title; one quote for the three turns, the reference and three replies.
    assert (rendered.count("<h1>"), rendered.count("<h2>")) == (1, 10)
    assert rendered.count("<blockquote>") == 10 * 5
    assert not re.search("<(script|svg|pre|code|hr|img|a|table)", rendered)
    assert rendered.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 30


def render(markdown):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown)


def shown(markdown):
    """The lines of text of a rendered quote; fails if it holds anything but text."""
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
def test_quote_renders_as_its_text(text):
    assert shown(quote(text)) == [text]
    assert shown(quote(f"first\n{text}\r\n\n{text}\u2028last")) == ["first", text, text, "last"]


def test_quote_renders_random_text():
    draw = random.Random(13)
    for _ in range(2000):
        text = "".join(draw.choices("\\`*_{}[]()<>#+-.!|~$&:;=\"'/@^%?, 1aw", k=draw.randint(1, 12)))
        if text.strip():
            assert shown(quote(f"{text}\n{text}")) == [text.strip()] * 2, repr(text)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_quote_of_an_empty_reply(text):
    assert quote(text) == "> *(empty)*"
    assert quote("*(empty)*") != "> *(empty)*"


def test_invisible_characters_are_replaced():
    assert escape("a\x00\x1b[31m\u202eb\xa0c") == "a\ufffd\ufffd\\[31m\ufffdb c"


class Elements(HTMLParser):
    """The start tags of a page with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_charts_are_described_in_words():
    main(params())
    elements = Elements(REPORT.read_text()).found
    told = {a["id"]: a["aria-label"] for tag, a in elements if tag == "div" and a.get("role") == "img"}
    assert "pref. acc. % ↑: sft 71.2, sft-dpo 80.0." in told.values()
    assert any(words.startswith("chosen: 0.01 at step 1, 0.24 at step 24; rejected: 0.01") for words in told.values())
    # Nothing is loaded, and no script but the three of the page runs.
    assert not {tag for tag, _ in elements} & {"link", "iframe", "object", "embed", "base", "form", "img"}
    assert sum(tag == "script" for tag, _ in elements) == 3


START = {"margin": 0.0, "accuracy": 50.0, "kl": 0.0, "chosen_logp": -2.9, "rejected_logp": -3.0, "entropy": 2.8}
E1 = {"margin": 0.8, "accuracy": 62.5, "kl": 0.05, "chosen_logp": -2.94, "rejected_logp": -3.1, "entropy": 2.6}
E2 = {"margin": 1.4, "accuracy": 66.0, "kl": 0.3, "chosen_logp": -3.3, "rejected_logp": -3.9, "entropy": 1.3}


def test_what_dpo_moved():
    """A row for the start and each round that was measured, a mark on what is not healthy, and a figure."""
    for name, value in START.items():
        write_curve("e1", f"valid/{name}", [(0, value), (8, E1[name])])
        write_curve("e2", f"valid/{name}", [(16, E2[name])])
    main(params())
    shown = rows(SUMMARY.read_text(), "round", "KL")
    assert list(shown)[2:] == ["before e1", "e1", "e2"]
    assert shown["before e1"] == ["0.00", "50.0", "0.000", "-2.900", "-3.000", "2.80"]
    assert shown["e1"] == ["0.80", "62.5", "0.050", "-2.940", "-3.100", "2.60"]
    assert shown["e2"] == ["1.40", "66.0", "0.300‡", "-3.300‡", "-3.900", "1.30‡"]
    assert unhealthy(START, START) == ["margin", "accuracy"]
    told = [attributes.get("aria-label") for _, attributes in Elements(REPORT.read_text()).found]
    assert "KL: 0 at step 0, 0.3 at step 16." in told
    assert movement.HEALTHY in html.unescape(REPORT.read_text())


def test_hostile_names_are_text():
    name = '<b id="f1-title">&amp;$x$_{'
    given = params()
    for scorer in (results.TEXT, results.EPITOME):
        for file in (results.metrics_file, results.intervals_file, results.scores_file):
            shutil.copy(file(scorer, "sft").path, file(scorer, name).path)
        shutil.copy(results.signature_file(scorer, "base").path, results.signature_file(scorer, name).path)
    shutil.copy(results.intervals_file("mmlu", "sft").path, results.intervals_file("mmlu", name).path)
    for file in (results.mmlu_file, results.replies_file):
        shutil.copy(file("sft").path, file(name).path)
    main(replace(given, variants={name: given.variants["sft"]}))
    elements = Elements(REPORT.read_text()).found
    assert not any(attributes.get("id") == "f1-title" for _, attributes in elements)
    assert any(a.get("aria-label", "").startswith(f"BLEU-1 ↑: {name} 20.00") for _, a in elements)
    assert all(name in html.unescape(render(page.read_text())) for page in (SAMPLES, SUMMARY))


def test_curves_with_nan_are_drawn():
    write_curve("e3", "rewards/chosen", [(1, 6.5), (5, "nan"), (20, "inf")])
    main(params())
    assert REPORT.exists()
