"""`python -m attune compare` on a small repository with two states of a run and a real DVC cache."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import ROOT, git

from attune.report.changes import (
    ALPHA,
    BETTER,
    NOISE,
    WORSE,
    Change,
    Changes,
    changed_params,
    holm,
    page,
    paired_changes,
    verdict,
)
from attune.runtime.errors import UserError
from attune.runtime.io import write_json, write_text
from attune.tools.compare import main

VARIANTS = ("base", "sft", "sft-dpo")
STAGES = """stages:
  one:
    cmd: "true"
    outs:
      - data/replies
      - data/scores
      - signatures
    metrics:
      - metrics/data.json: {cache: false}
"""
N = 200
RANDOM = np.random.default_rng(4)
HARD = RANDOM.normal(20, 8, N)
"""How high an example scores under any variant: what pairing takes out."""


QUESTIONS = 40


def write_run(
    variant,
    shift=0.0,
    noise=0.0,
    context="context",
    levels=1,
    human=1,
    encoder="a",
    mmlu=25.0,
    form="letters",
    rejected="no",
    preference=50.0,
):
    """Scores by example, metrics, replies and signatures of a variant, as the stages write them."""
    rouge = HARD + shift + noise * np.random.default_rng(8).normal(0, 5, N)
    ids = [f"test/{i:03}" for i in range(N)]
    text = pd.DataFrame({"id": ids, "label": "sad", "rouge_l": rouge, "bertscore_f1": rouge / 2, "reply_words": 9.0})
    text["preference_accuracy"] = preference
    gap = (levels - human) ** 2
    level = pd.DataFrame({"id": ids, "level_er": levels, "reference_level_er": human, "diff_er": gap})
    answers = pd.DataFrame({
        "id": [f"law/{i}" for i in range(QUESTIONS)],
        "acc": [100.0 * (i < QUESTIONS * mmlu / 100) for i in range(QUESTIONS)],
        "answer_logp": np.linspace(-3, -1, QUESTIONS) + mmlu / 100,
        "answer_margin": 0.5,
    })  # fmt: skip
    for scorer, frame in (("text", text), ("epitome", level), ("mmlu", answers)):
        path = Path(f"data/scores/{scorer}/{variant}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        frame.to_parquet(path, index=False)
        means = {name: float(frame[name].mean()) for name in frame.select_dtypes("number")}
        extra = {"text": {"dist_1": 30.0 + shift}, "mmlu": {"acc_stderr": 1.0}}.get(scorer, {})
        write_json(Path(f"metrics/{scorer}/{variant}.json"), means | extra)
    write_json(Path(f"metrics/text/{variant}.signature.json"), {"bertscore_encoder": encoder, "tokeniser": "13a"})
    write_json(Path(f"metrics/mmlu/{variant}.signature.json"), {"form": form, "adapter": f"{variant} {shift}"})
    turn = [{"role": "user", "text": context, "act": None}]
    rows = [
        {"id": key, "label": "sad", "context": turn, "reference": "yes", "reply": "a", "rejected": rejected}
        for key in ids
    ]
    path = Path(f"data/replies/{variant}.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    pd.DataFrame(rows).to_parquet(path, index=False)


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """A commit of a run of three variants, with its outs in DVC's cache."""
    folder = tmp_path_factory.mktemp("repository")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        git("init", "-q")
        subprocess.run(["dvc", "init", "-q"], check=True)
        shutil.copy(ROOT / "params.yaml", ".")
        write_text(Path("dvc.yaml"), STAGES)
        write_text(Path("signatures/one"), "")
        write_json(Path("metrics/data.json"), {"test_dialogues": N})
        for variant in VARIANTS:
            write_run(variant)
        subprocess.run(["dvc", "commit", "-fq"], check=True)
        git("add", "-A")
        git("commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def repository(committed, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(committed, tmp_path / "copy", symlinks=True))


def printed(capsys, *arguments):
    main(list(arguments))
    return capsys.readouterr().out


def test_a_change_within_noise_is_called_so_and_a_real_one_is_found(repository, capsys):
    """On 200 examples, paired: noise of SD 5 around no change is noise, a shift of 3 under the same noise is found."""
    write_run("sft", noise=1.0)
    text = printed(capsys)
    assert "Verdict: no difference shown. None of 2 metrics" in text
    assert "Within noise, 2: sft: F-BERT, ROUGE-L." in text and "ROUGE-L ↑" not in text
    write_run("sft", shift=3.0, noise=1.0)
    text = printed(capsys)
    assert "Verdict: better. 2 better, 0 worse, of 2 metrics" in text
    row = next(line for line in text.splitlines() if "ROUGE-L ↑" in line)
    assert row.startswith("better") and "sft" in row and "< 0.001" in row
    write_run("sft-dpo", shift=-3.0, noise=1.0)
    text = printed(capsys)
    assert "Verdict: mixed. 2 better, 2 worse, of 4 metrics" in text
    kinds = [line.split()[0] for line in text.splitlines() if line.startswith((BETTER, WORSE))]
    assert kinds == [BETTER, BETTER, WORSE, WORSE]


def test_a_small_change_of_the_same_examples_is_found_inside_the_marginal_interval(repository, capsys):
    """Half a point less on each example, give or take one: the mean alone is uncertain by more than a point."""
    write_run("sft", shift=-0.5, noise=0.2)
    scores = pd.read_parquet("data/scores/text/sft.parquet")["rouge_l"]
    low, high = (scores.mean() + side * 1.96 * scores.std() / N**0.5 for side in (-1, 1))
    assert low < HARD.mean() < high
    text = printed(capsys)
    assert "Verdict: worse. 0 better, 2 worse, of 2 metrics" in text
    row = next(line for line in text.splitlines() if "ROUGE-L ↑" in line)
    value, low, high = map(float, re.search(r"([-+.\d]+) +([-+.\d]+) to ([-+.\d]+) +< 0.001", row).groups())
    assert low < value < high < 0 and value == pytest.approx(-0.5, abs=0.2)


def test_the_other_revision_is_compared_by_its_own_scores(repository, capsys):
    write_run("sft", shift=3.0, noise=1.0)
    subprocess.run(["dvc", "commit", "-fq"], check=True)
    git("add", "-A")
    git("commit", "-q", "-m", "second")
    assert "Verdict: nothing changed." in printed(capsys)
    assert "Verdict: better. 2 better" in printed(capsys, "HEAD~1")
    shutil.rmtree(".dvc/cache")
    text = printed(capsys, "HEAD~1")
    assert "Verdict: not judged." in text and "HEAD~1 has no scores by example here (`dvc fetch`" in text
    assert "ROUGE-L 19" in text or "ROUGE-L 20" in text


def test_a_level_is_judged_by_its_distance_from_people(repository, capsys):
    write_run("sft", levels=2)
    text = printed(capsys)
    assert "Verdict: worse. 0 better, 2 worse, of 2 metrics" in text
    lines = [line for line in text.splitlines() if line.startswith(WORSE)]
    # Levels lead, differences follow.
    assert ["distance of ER ↓" in lines[0], "diff-ER ↓" in lines[1]] == [True, True]
    assert "0.00" in lines[0] and "1.00" in lines[0]


def test_levels_of_another_classifier_are_not_compared(repository, capsys):
    """Its signature is the same; the human replies show it."""
    write_run("sft", levels=2, human=2)
    text = printed(capsys)
    assert "Verdict: not judged." in text
    assert "- measured by another classifier: the human replies score otherwise: ER 1.00 → 2.00 (sft)" in text


def test_knowledge_is_compared_question_by_question(repository, capsys):
    """Two of forty questions more are no finding, at chance; each right answer likelier by 0.05 is one."""
    write_run("sft", mmlu=30.0)
    text = printed(capsys, "--all")
    assert "Verdict: better. 1 better, 0 worse, of 2 metrics" in text
    rows = {line.split("  ")[0]: line for line in text.splitlines() if "MMLU" in line}
    assert "MMLU log-prob ↑" in rows[BETTER] and "+0.050 to +0.050" in rows[BETTER]
    assert re.search(r"MMLU ↑ +25\.0 +30\.0†", rows[NOISE]) and "†: at chance." in text


def test_params_come_first(repository, capsys):
    params = Path("params.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(params.replace("seed: 13\n", "seed: 14\n", 1), encoding="utf-8")
    lines = printed(capsys).splitlines()
    assert lines[2:5] == ["Changed params:", "", "- seed: 13 → 14"] and lines[6] == "Verdict: nothing changed."


def test_what_cannot_be_judged_stands_apart_with_the_reason(repository, capsys):
    write_run("sft", shift=3.0, encoder="b", mmlu=30.0, form="cloze")
    write_json(Path("metrics/data.json"), {"test_dialogues": 12})
    text = printed(capsys)
    assert "Verdict: better. 1 better, 0 worse, of 1 metrics" in text
    apart = text.partition("Not judged:")[2]
    assert "- measured differently (bertscore_encoder): F-BERT" in apart
    assert "- measured differently (form): MMLU 25.0 → 30.0 (sft), MMLU log-prob" in apart
    assert "- counts over all replies, without an interval: Dist-1 30.00 → 33.00 (sft)" in apart
    assert "- of the run, not of replies: data test_dialogues 200 → 12" in apart


def test_only_equal_examples_are_compared(repository, capsys):
    write_run("sft", shift=3.0, context="another context")
    text = printed(capsys)
    assert "Verdict: not judged." in text and "no test examples in common: F-BERT" in text


def test_preferences_over_other_rejected_replies_are_not_compared(repository, capsys):
    write_run("sft", shift=3.0, preference=70.0, rejected="never")
    text = printed(capsys)
    assert "- the rejected replies of the test examples are others: pref. acc. % 50.0 → 70.0 (sft)" in text
    assert "Verdict: better. 2 better" in text
    write_run("sft", shift=3.0, preference=70.0)
    assert "Verdict: better. 3 better" in printed(capsys)


def test_probes_are_shown_and_not_judged(repository, capsys):
    params = Path("params.yaml").read_text().replace("probed: {}", "probed: {sft: {}}")
    write_text(Path("params.yaml"), params)
    write_json(Path("metrics/safety/sft.json"), {"safety_harm": 12.5})
    assert "- of probes, whose intervals are in metrics/intervals/: harm % \N{EN DASH} → 12.5 (sft)" in printed(capsys)


def test_the_folder_of_another_run(repository, capsys):
    shutil.copytree(".", "../other", symlinks=True)
    write_run("sft", shift=3.0)
    text = printed(capsys, "../other", "--md")
    assert "/other." in text and "**Verdict: better. 2 better" in text and "| better | sft" in text


def test_a_record(repository, capsys):
    metrics = {name: json.loads(Path(f"metrics/text/{name}.json").read_bytes()) for name in VARIANTS}
    write_json(Path("record.json"), {"name": "one", "metrics": metrics | {"sft": metrics["sft"] | {"rouge_l": 1.0}}})
    assert "Not judged:\n\n- record.json has no scores by example here" in printed(capsys, "record.json")
    kept = Path(".cache/records/one/text")
    kept.mkdir(parents=True)
    shutil.copy("data/scores/text/sft.parquet", kept)
    write_run("sft", shift=3.0)
    assert "Verdict: better. 2 better" in printed(capsys, "record.json")
    # How MMLU was asked is in the record, or its questions are not compared.
    for scorer in ("text", "mmlu"):
        shutil.copytree(f"data/scores/{scorer}", f".cache/records/one/{scorer}", dirs_exist_ok=True)
    whole = {"name": "one", "metrics": metrics, "mmlu": {name: {"acc": 20.0} for name in VARIANTS}}
    write_json(Path("record.json"), whole)
    assert "record.json does not say how it was measured: MMLU 20.0 → 25.0" in printed(capsys, "record.json")
    forms = {name: {"form": "cloze"} for name in VARIANTS}
    write_json(Path("record.json"), whole | {"mmlu_signature": forms})
    assert "measured differently (form): MMLU 20.0 → 25.0" in printed(capsys, "record.json")
    write_text(Path("record.json"), "{}")
    with pytest.raises(UserError, match=r"^record\.json is no record with metrics"):
        main(["record.json"])


def test_a_name_that_is_nothing(repository):
    with pytest.raises(UserError, match=r"^nowhere is no revision, no folder of a run and no record"):
        main(["nowhere"])


def test_holm_by_hand():
    """Of 0.01, 0.04, 0.03 and 0.005 times 4, 3, 2, 1 in their order, never falling: Holm 1979."""
    names = ("rouge_l", "bertscore_f1", "diff_er", "bleu_1")
    changes = [Change("v", name, 0, 1, 0, 1, p) for name, p in zip(names, (0.01, 0.04, 0.03, 0.005), strict=True)]
    # A metric without a better direction is not in the family.
    moved = Change("v", "reply_words", 0, 1, 0, 1, 0.001)
    found = holm([*changes, moved])
    assert [one.corrected for one in found[:4]] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.verdict for one in found] == [BETTER, NOISE, NOISE, BETTER, "no better direction"]


def test_the_correction_takes_a_chance_finding_back():
    """Forty null metrics: their own intervals exclude 0 in some, and the verdict stays within noise."""
    random = np.random.default_rng(11)
    ids = [str(i) for i in range(100)]
    changes = []
    for number in range(40):
        before, after = (pd.DataFrame({"id": ids, "rouge_l": random.normal(0, 1, 100)}) for _ in range(2))
        changes += paired_changes(before, after, f"v{number}", ids, seed=number)
    found = holm(changes)
    assert any(one.p < ALPHA for one in found) and all(one.verdict == NOISE for one in found)
    assert (
        "*: its own 95 % interval excludes 0" in page(Changes(judged=found), "x", everything=False) or len(found) == 40
    )
    assert verdict(Changes(judged=found)).startswith("Verdict: no difference shown.")


def test_the_p_value_is_the_interval_s():
    random = np.random.default_rng(3)
    ids = [str(i) for i in range(60)]
    for shift in np.linspace(0, 0.6, 13):
        before = pd.DataFrame({"id": ids, "rouge_l": random.normal(0, 1, 60)})
        after = before.assign(rouge_l=before["rouge_l"] + random.normal(shift, 1, 60))
        (one,) = paired_changes(before, after, "v", ids, 1)
        assert (one.p < 0.05) == (one.low > 0 or one.high < 0) or abs(one.p - 0.05) < 0.002


@pytest.mark.parametrize("markdown", [False, True])
def test_a_page_has_at_most_forty_lines(markdown):
    names = ("rouge_l", "bertscore_f1", "diff_er", "diff_ex", "diff_ip", "bleu_1", "bleu_4", "preference_accuracy")
    sides = [(0.0, 1.0, 1e-4), (1.0, 0.0, 1e-4), (0.0, 1.0, 0.5)]
    judged = [
        Change(f"variant-{number}", name, old, new, 0.1, 0.9, p, p)
        for number in range(9) for name in names for old, new, p in sides
    ]  # fmt: skip
    words = [Change(f"variant-{number}", "reply_words", 9, 10, 0.5, 1.5, 0.01) for number in range(30)]
    apart = {f"reason {i}": [f"metric {j} 1 → 2 (variant)" for j in range(40)] for i in range(9)}
    changes = Changes([f"key.{i}: 0 → 1" for i in range(30)], [*judged, *words], apart, ["A note."])
    text = page(changes, "main", markdown)
    assert len(text.splitlines()) <= 40
    assert "- and 26 more (--all)" in text and "more: --all shows them." in text and text.count("…") == 6
    whole = page(changes, "main", markdown, everything=True)
    assert whole.count("variant-") == len(judged) + len(words) and "key.29: 0 → 1" in whole


def test_names_of_params_that_come_and_go():
    before, after = {"dpo": {"beta": 0.1, "old": 1}, "seed": 1}, {"dpo": {"beta": 0.05}, "seed": 1, "new": None}
    assert changed_params(before, after) == ["dpo.beta: 0.1 → 0.05", "new: \u2013 → None", "dpo.old: 1 → \u2013"]
