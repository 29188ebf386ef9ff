"""The pages that `attune record` writes, and how it runs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from helpers import project as folder
from helpers import replies, write_curves

from attune.config.params import compose, load
from attune.generation.answer import write_replies
from attune.report import first_screen, results
from attune.report import front as first_page
from attune.report.paper_results import TABLE_1, dbt_table
from attune.report.read import SAMPLE_SCORES
from attune.runtime.errors import UserError
from attune.runtime.io import write_json, write_text
from attune.tools import record as tool
from attune.tools.pipeline import stages_in_order
from attune.tools.record import EMPO, compositions, front, headline, page

ROOT = Path(__file__).parents[1]
VALUES = {"bleu_1": 12.0, "rouge_l": 10.0, "diff_er": 0.5, "diff_ex": 0.6, "diff_ip": 0.7, "bertscore_f1": 61.25}


def record(name="sample", **more):
    return {
        "name": name,
        "command": f"python -m attune record {name}",
        "commit": "0123456789abcdef",
        "date": "2024-01-31",
        "machine": {"processor": "x", "cores": 2, "memory_gib": 8, "gpu": None}
        | dict.fromkeys(("torch", "transformers", "trl", "python"), "1"),
        "wall_seconds": {"base": 10.0, "sft": 20.0},
        "data": {"train_dialogues": 100, "test_dialogues": 10},
        "pairs": {"e1": {"pairs": 64}},
        "metrics": {"base": VALUES, "sft": VALUES | {"diff_er": 0.25}},
        "signature": {"base": {"bertscore_encoder": "some-encoder"}},
        **more,
    }


def measured(name="sample"):
    bounds = {"diff_er.low": 0.2, "diff_er.high": 0.3, "diff_er.diff_low": -0.3, "diff_er.diff_high": -0.2}
    return record(
        name,
        mmlu={"base": {"acc": 25.0, "acc_stderr": 1.0}, "sft": {"acc": 26.0, "acc_stderr": 0.0}},
        intervals={"base": {"rouge_l.low": 9.0, "rouge_l.high": 11.0}, "sft": bounds},
    )


def rows(text):
    """The cells of every table row by its first cell; the cells of rows of the same name are joined."""
    found = {}
    for line in text.splitlines():
        if line.startswith("| "):
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(name, []).extend(cells)
    return found


def test_headline():
    found = rows(headline(measured()))
    assert found["variant"][:5] == ["MMLU ↑", "diff-ER ↓", "diff-EX ↓", "diff-IP ↓", "F-BERT ↑"]
    assert found["base"][:5] == ["25.0 ± 2.0†", "0.500", "0.600", "0.700", "61.2"]
    # A standard error of 0 gives no interval.
    assert found["sft"][:2] == ["26.0", "0.250 ± 0.050*"]
    assert "10.00 ± 1.00" in found["base"]


def test_human_replies_and_classifiers():
    human = {"reference_level_er": 0.5, "behaviour_reference_questions": 40.0, "dbt_reference_listening": 20.0,
             "dbt_reference_genuine": 15.0}  # fmt: skip
    model = {"level_er": 0.75, "behaviour_questions": 30.0, "dbt_adherence": 25.0, "dbt_listening": 10.0}
    measures = {"er_accuracy": 78.18, "er_majority_accuracy": 65.45, "er_rationale_f1": 42, "behaviour_macro_f1": 60,
                "er_published_kappa": 0.8}  # fmt: skip
    text = page([record(metrics={"base": VALUES | model | human}, classifiers=measures)])
    found = rows(text)
    assert [cell for cell in found["people"] if cell != "\u2013"] == ["0.50", "35.0", "20.0", "15.0", "40.0"]
    assert found["classifier"] == ["accuracy %", "guessing %", "macro F1", "kappa, published levels"]
    assert found["ER"] == ["78.2", "65.5", "\u2013", "0.80"] and found["behaviours of replies"][2] == "60.0"
    assert "people" not in rows(page([record()])) and "classifier" not in rows(page([record()]))


def test_the_page_begins_with_verdicts_and_has_times_by_kind_of_stage():
    seconds = {"base": 10.0, "generate@base": 20.0, "generate@sft": 30.0}
    text = page([record(EMPO, verdict="Better\nby far.", wall_seconds=seconds), record()])
    assert "\n- [empo](#empo): Better by far.\n- [sample](#sample): `python" in text
    assert "\n60 s for 3 stages: generate 50 s (2), base 10 s (1).\n" in text


def test_what_the_rules_say_and_what_dpo_moved_stand_in_the_section_of_a_record():
    start = {"margin": 0, "accuracy": 50, "kl": 0, "chosen_logp": -2.5, "rejected_logp": -3, "entropy": 2}
    end = start | {"margin": 4, "accuracy": 75, "kl": 0.5, "entropy": 1.5}
    text = page([record(verdicts=["EX *saturates*."], movement={"e1": [start, end]})])
    assert "\n- EX \\*saturates\\*.\n" in text
    found = rows(text)
    assert found["before e1"] == ["0.00", "50.0", "0.000", "-2.500", "-3.000", "2.00"]
    # KL of more than a tenth of the starting entropy.
    assert found["e1"][:3] == ["4.00", "75.0", "0.500\u2021"]


def test_guessing_on_truthfulqa_is_marked_by_the_run_s_own_questions():
    bounds = {"truth_acc.low": 20.0, "truth_acc.high": 30.0}
    values = VALUES | {"truth_acc": 25.0}
    text = headline(record(metrics={"base": values | {"truth_chance": 22.0}}, intervals={"base": bounds}))
    assert "25.0 \u00b1 5.0\u2020" in text and "right in 22.0 %" in text
    assert "\u2020" not in headline(
        record(metrics={"base": values | {"truth_chance": 31.0}}, intervals={"base": bounds})
    )


def test_readme_block():
    shown = measured(EMPO) | {"verdict": "Better.", "dialogue": {"message": "Hi *all*", "replies": {"base": "Hello."}}}
    text = front([measured("counselling"), measured("dbt"), shown])
    found = rows(text)
    assert found[""] == ["base", "sft"]
    assert found["likeness to the human reply (BERTScore F1)"] == ["61.2", "61.2"]
    assert found["knows answers to exam questions, % (MMLU, chance 25)"] == ["25.0 ± 2.0†", "26.0"]
    assert text.startswith("Better.\n") and "> **Somebody:** Hi \\*all\\*\n>\n> **base:** Hello" in text
    assert "commit 0123456789ab" in text
    links = "[counselling](docs/results.md#counselling), [dbt](docs/results.md#dbt)"
    assert text.endswith(f"\n\nMore records: {links}.\n")


def test_the_first_screens_tell_of_the_same_metrics():
    assert first_page.WORDS.keys() == first_screen.COLUMNS.keys() > first_page.TITLES.keys()


def test_without_a_record_only_the_readme_is_written(tmp_path, monkeypatch):
    """It keeps its text and loses the tables of records that are gone."""
    monkeypatch.chdir(tmp_path)
    text = f"before\n{tool.BEGIN}\n| old | 1 |\n{tool.END}\nafter\n"
    Path("README.md").write_text(text, encoding="utf-8")
    tool.main([])
    assert Path("README.md").read_text(encoding="utf-8") == text.replace("| old | 1 |\n", tool.NO_RECORD)
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    write_json(tool.RECORDS / "empo.json", measured(EMPO))
    tool.main([])
    assert tool.PAGE.read_text(encoding="utf-8") == page([measured(EMPO)])
    assert front([measured(EMPO)]) in Path("README.md").read_text(encoding="utf-8")
    svg = ElementTree.parse(tool.FIGURE).getroot()
    assert svg.tag.endswith("svg")


def test_the_readme_is_current():
    """Mend it with `python -m attune record`."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / tool.RECORDS).glob("*.json"))]
    assert tool.insert(text, front(records)) == text


def test_old_record_without_mmlu_and_intervals():
    found = rows(headline(record()))
    assert found["base"][:2] == ["\u2013", "0.500"]


def test_empo_table():
    text = page([measured(EMPO)])
    beside = text.split("### EmPO's table 1 and this record")[1]
    assert rows(beside)["Zephyr-7B, SFT + DPO"] == ["57.2", "0.660", "0.627", "0.648", "72.8"]
    assert all(name in text for name in TABLE_1) and "F-BERT uses some-encoder" in text
    assert "The numbers of the two are not comparable" in text
    assert "Zephyr" not in page([measured()])


def study():
    """A record of three models with four variants each."""
    part = measured()
    dbt = {"bleu_4": 0.5, "rouge_l": 10.0, "dist_1": 3.0, "dist_2": 9.0, "dbt_gap": 2.5}
    metrics = dict.fromkeys(("base", "sft", "dpo", "sft-dpo"), dbt)
    bounds = {"base": {"dbt_gap.low": 2.0, "dbt_gap.high": 3.0}}
    pairs = {"e1": {"pairs": 64, "chosen_score": 90.0, "rejected_score": 10.0}}
    one = {key: part[key] for key in ("data", "signature", "wall_seconds")}
    one |= {"metrics": metrics, "intervals": bounds, "pairs": pairs}
    kept = {key: part[key] for key in ("name", "command", "commit", "date", "machine")}
    return kept | {"models": dict.fromkeys(("tiny", "tiny-mistral", "tiny-gemma"), one)}


def test_dbt_table():
    found = rows(page([study()]).split("### Table 1 of Son and So and this record")[1].split("###")[0])
    assert len(found) == 1 + 12 + 12
    assert found["model"] == ["B-4 ↑", "R-L ↑", "Dist ↑", "Dist-1 ↑", "Dist-2 ↑", "DBT gap ↓"]
    assert found["Gemma-7B, sft-dpo"] == ["0.40", "5.85", "12.80", "\u2013", "\u2013", "1.75"]
    assert found["tiny-gemma, base"] == ["0.50", "10.00", "\u2013", "3.00", "9.00", "2.50 ± 0.50"]


def test_dbt_table_agrees_with_the_paper():
    """ "With DPO providing the most substantial gains": after SFT and DPO each model is nearest to people."""
    found = dbt_table()
    assert len(found) == 12
    for model in ("Llama-3-8B", "Mistral-7B", "Gemma-7B"):
        gaps = {name.removeprefix(f"{model}, "): row["dbt_gap"] for name, row in found.items() if model in name}
        assert list(gaps) == ["base", "sft", "dpo", "sft-dpo"]
        assert min(gaps, key=gaps.get) == "sft-dpo"


def test_rounds_and_times_of_each_model():
    text = page([study()])
    assert all(f"### {name}\n" in text for name in ("tiny", "tiny-mistral", "tiny-gemma"))
    assert text.count("| chosen score |") == 3 and "repeated rejected" not in text


def test_compositions():
    assert compositions(["recipe=dbt", "model=a,b", "seed=1"]) == {
        "a": ["recipe=dbt", "seed=1", "model=a"],
        "b": ["recipe=dbt", "seed=1", "model=b"],
    }
    assert compositions(["recipe=empo", "model=tiny"]) == {"tiny": ["recipe=empo", "model=tiny"]}
    assert list(compositions(["pairs.limit=4"]).values()) == [["pairs.limit=4"]]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with `conf/` only, in which tiny-gemma counts as a specialised model."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "conf", "conf")
    path = Path("conf/model/tiny-gemma.yaml")
    text = path.read_text(encoding="utf-8").replace(
        "  name: tiny-gemma", "  name: tiny-gemma\n  specialised: true\n  stands_in_for: medgemma"
    )
    path.write_text(text, encoding="utf-8")
    for name in ("NAME", "EMAIL"):
        monkeypatch.setenv(f"GIT_AUTHOR_{name}", "a")
        monkeypatch.setenv(f"GIT_COMMITTER_{name}", "a")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        subprocess.run(["git", *command], check=True)


def stages_write(rouge):
    """Write the files of the stages for replies whose ROUGE-L is `rouge` plus the index of the variant."""
    params = load()
    pairs = [results.pairs_file(key) for key in params.rounds]
    for artifact in (results.data_file(), results.quality_file("epitome"), *pairs):
        write_json(artifact.path, {"pairs": 1, "train_dialogues": 1, "test_dialogues": 2})
    write_json(results.labels_file().path, {})
    write_text(results.sft_curve_file("sft", "loss").path, "step\tloss\n1\t3.5\n")
    for number, key in enumerate(params.rounds, 1):
        write_curves(key, 10 * number)
    for i, key in enumerate(params.variants):
        write_replies(replies("Oh", 2), results.replies_file(key).path)
        for scorer, column in (("text", "rouge_l"), ("epitome", "diff_er"), ("mmlu", "acc")):
            write_json(results.metrics_file(scorer, key).path, {column: rouge + i})
            for file in (results.signature_file, results.intervals_file):
                write_json(file(scorer, key).path, {})
            path = results.scores_file(scorer, key).path
            path.parent.mkdir(parents=True, exist_ok=True)
            known = dict.fromkeys(SAMPLE_SCORES.get(scorer, ()), 1.0)
            pd.DataFrame({"id": ["test/0", "test/1"], **known, column: 2 * [rouge + i]}).to_parquet(path)


def test_interrupted_record_of_several_models(project, monkeypatch):
    """Without the stages themselves, which take hours: only their files are written."""
    ran = []

    def stages_of(record, part, path):
        model = load().model.name
        ran.append(model)
        if ran.count("tiny-gemma") == 1 and model == "tiny-gemma":
            raise UserError("stage sft failed")
        stages_write({"tiny": 10.0, "tiny-gemma": 12.0}[model])

    monkeypatch.setattr(tool, "_reproduce", stages_of)
    arguments = ("study", ["model=tiny,tiny-gemma"], Path("results"))
    with pytest.raises(UserError, match="stage sft failed"):
        tool.run(*arguments)
    assert list(json.loads(Path("results/study.json").read_text())["models"]) == ["tiny"]
    tool.run(*arguments)
    assert ran == ["tiny", "tiny-gemma", "tiny-gemma"]
    made = json.loads(Path("results/study.json").read_text())
    assert [part["specialised"] for part in made["models"].values()] == [False, True]
    cases = made["generalist_less_specialised"]["tiny"]["tiny-gemma"]
    assert {key: cells["rouge_l.diff"] for key, cells in cases.items()} == dict.fromkeys(
        ("base", "sft", "sft-dpo"), -2.0
    )
    assert made["models"]["tiny"]["dpo_less_standard"]["sft-dpo"]["sft"]["rouge_l.diff"] == 1.0
    text = page([made])
    mmlu, overlap = "- Empathy and understanding: MMLU", "- Overlap and diversity: ROUGE-L"
    assert f"tiny-gemma is better in:\n\n{mmlu} (all)\n{overlap} (all)\n" in text
    assert f"DPO is better in:\n\n{mmlu} (sft-dpo vs sft)\n{overlap} (sft-dpo vs sft)\n" in text
    assert "tiny-gemma stands in for medgemma (`model.stands_in_for`): it was not made for a domain" in text


def test_a_stage_from_the_cache_has_no_time(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    subprocess.run(["dvc", "init", "-q", "--no-scm"], check=True)
    write_text(Path("params.yaml"), "{}")
    write_text(Path("dvc.yaml"), "stages:\n  one: {cmd: echo made > out, outs: [out]}\n")
    parts = [{"wall_seconds": {}}, {"wall_seconds": {}}]
    for part in parts:
        tool._reproduce(part, part, Path("record.json"))
    assert [list(part["wall_seconds"]) for part in parts] == [["one"], []]
    assert "Running stage 'one'" in capsys.readouterr().out


def test_pages_leave_an_unfinished_record_out(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(Path("README.md"), f"{tool.BEGIN}{tool.END}")
    (tmp_path / "docs/results").mkdir(parents=True)
    write_json(Path("docs/results/a.json"), record() | {"name": "a"})
    write_json(Path("docs/results/b.json"), {"name": "b", "command": "python -m attune record b", "wall_seconds": {}})
    tool.main([])
    assert "## a" in Path("docs/results.md").read_text() and "## b" not in Path("docs/results.md").read_text()
    assert "b is not finished, and left out: `python -m attune record b` continues it" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [[], ["recipe=dbt", "model=tiny", "corpus=esconv_sample"]])
def test_stage_order(recipe, tmp_path, monkeypatch):
    folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    compose(recipe)
    order = stages_in_order()
    for first, then in (("prepare", "base"), ("sft@sft", "dpo@e1"), ("dpo@e2", "dpo@e3"), ("evaluate@sft", "report")):
        assert order.index(first) < order.index(then)
    if recipe:
        # dvc.yaml lists the classifier after the pairs, which depend on it.
        assert order.index("classifier@dbt") < order.index("pairs@e1") < order.index("dpo@e1") < order.index("pairs@e2")
    assert len(set(order)) == len(order)
