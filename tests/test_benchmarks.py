"""Every side of the benchmarks runs, on tiny models; a case that is measured leaves the others' results."""

import json
import shutil
from itertools import chain

import pandas as pd
import pytest
import torch
from helpers import ROOT, random_classifiers

from attune.corpora.readers import empathetic_dialogues
from attune.data.dialogue import write_dialogues
from attune.runtime.errors import UserError
from attune.runtime.io import write_frame
from benchmarks import dpo, generate, losses, measure, mmlu, scoring, sft
from benchmarks.llama_server import LlamaServer
from benchmarks.page import PAGE, page

CASES = {
    dpo: ["headline"],
    losses: ["simpo", "orpo"],
    sft: ["headline"],
    generate: ["headline"],
    mmlu: ["headline"],
}


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch):
    """In the project's folder and on its samples, which are read in less time than the corpora."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(measure, "CORPORA", ROOT / "nowhere")
    # One round that counts.
    monkeypatch.setattr(measure, "ROUNDS", 1)
    measure.dialogues.cache_clear()
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    measure.dialogues.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("benchmark", CASES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_side_runs(benchmark, tmp_path):
    name = benchmark.__name__.rpartition(".")[2]
    benchmark.main([*CASES[benchmark], "--tiny", str(tmp_path)])
    result = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    assert list(result["cases"]) == CASES[benchmark]
    for key, case in result["cases"].items():
        sides = set(benchmark.CASES[key].sides)
        assert case["over"].keys() == sides - {"ours", "sft"}
        assert all(0 < one["low"] <= one["ratio"] <= one["high"] for one in case["over"].values())
        assert case.get("peak_memory_mib", dict.fromkeys(sides, 1)).keys() == sides
        # A packed pair has fewer FLOP than two padded sequences.
        assert name != "dpo" or case["gflops_each"]["ours"] < case["gflops_each"]["live"]
        assert case.get("choices_that_differ", 0) <= 1
    shown = page(PAGE.read_text(encoding="utf-8"), {name: result})
    assert all(f"| {key} " in shown for key in CASES[benchmark])


@pytest.mark.parametrize("replies", [True, False])
def test_scoring_takes_the_contexts_that_all_variants_answer(replies, tmp_path, monkeypatch):
    found, _ = empathetic_dialogues.read(ROOT / "data/sample/empatheticdialogues")
    examples = [one for one in found if one.split == "test"][:12]
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    random_classifiers(tmp_path / "models/epitome")
    write_dialogues(examples, tmp_path / "data/dialogues/test.parquet")
    answers = {"base": examples[1:8], "sft": examples[:6]} if replies else {}
    for variant, answered in answers.items():
        rows = [{"id": one.id, "reply": f"{variant} {i}"} for i, one in enumerate(answered)]
        write_frame(tmp_path / f"data/replies/{variant}.parquet", pd.DataFrame(rows))
    scoring.main(["all", "--tiny", str(tmp_path)])
    cases = json.loads((tmp_path / "scoring.json").read_text(encoding="utf-8"))["cases"]
    assert [cases[key]["pairs_scored"] for key in ("headline", "one-set")] == [
        {"ours": 4 * (1 + 2), "peer": 4 * 2 * 2} if replies else {"ours": 4 * (1 + 3), "peer": 4 * 2 * 3},
        {"ours": 4, "peer": 4},
    ]
    assert all(case["dtype"] == "float32" and case["levels_that_differ"] == 0 for case in cases.values())


def figures(ratio):
    return {"unit": "pairs", "over": {"live": {"ratio": ratio, "low": 1.0, "high": 9.0}}}


def test_a_case_leaves_the_others_but_those_that_are_no_more(tmp_path):
    for key, ratio in (("old", 2.0), ("batch-4", 3.0), ("headline", 4.0), ("batch-4", 5.0)):
        names = ["old"] if key == "old" else ["headline", "batch-4"]
        measure.write_case(tmp_path, "dpo", names, key, figures(ratio))
    cases = json.loads((tmp_path / "dpo.json").read_text(encoding="utf-8"))["cases"]
    assert [(key, case["over"]["live"]["ratio"]) for key, case in cases.items()] == [
        ("headline", 4.0),
        ("batch-4", 5.0),
    ]
    assert all("torch" in case["machine"] for case in cases.values())


@pytest.mark.parametrize(
    ("code", "found"), [("print(7)", 7), ("import os; os.kill(os.getpid(), 9)", "killed")], ids=["ended", "killed"]
)
def test_a_side_that_memory_does_not_hold_has_no_peak(code, found, tmp_path, monkeypatch):
    (tmp_path / "held.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert measure.peak_memory("held") == found


def test_a_server_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("LLAMA_SERVER", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"LLAMA_SERVER=.*none names no program: .* how it is built"):
        LlamaServer(tmp_path / "model.gguf", 2, 64, 1)


def test_rounds_share_nothing_and_need_enough(monkeypatch):
    monkeypatch.setattr(measure, "ROUNDS", 3)
    parts = measure.in_rounds(list(range(20)), 2, 6)
    assert [len(part) for part in parts] == [2, 6, 6, 6] and list(chain(*parts)) == list(range(20))
    with pytest.raises(ValueError, match="19 items are fewer than 2 and 3 rounds of 6"):
        measure.in_rounds(list(range(19)), 2, 6)


def test_a_round_has_long_and_short_prompts_and_a_thousand_are_all():
    prompts = [[i] for i in range(1000)]
    warm, *rounds = generate.parts_of(prompts, generate.CASES["headline"])
    assert [len(batch) for batch in warm] == [32] and [len(part) for part in rounds] == [2, 2, 2]
    seen = [prompt for part in rounds for batch in part for prompt in batch]
    assert len({prompt[0] for prompt in seen} - {prompt[0] for prompt in warm[0]}) == 6 * 32
    (_, everything) = generate.parts_of(prompts, generate.CASES["thousand"])
    assert sorted(prompt[0] for batch in everything for prompt in batch) == list(range(1000))


def test_a_case_that_is_not_there_is_an_error(capsys):
    with pytest.raises(SystemExit):
        dpo.main(["bath-4"])
    assert "bath-4 is none of the cases headline, batch-1" in capsys.readouterr().err
