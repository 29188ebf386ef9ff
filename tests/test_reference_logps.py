"""The reference's log-probabilities: which are computed, which are stored, and which files are refused."""

import math

import pytest
from dpo_models import DPO, HARDWARE, MAX_LENGTH, PAIRS, make_policy, make_tokenizer, trl_trainer
from dpo_models import with_made_up_reference as made_up

from attune.runtime.errors import UserError
from attune.training.common.packed_forward import packed_output
from attune.training.dpo import reference_logps
from attune.training.dpo.reference_logps import complete, read, reply_key, with_reference, write
from attune.training.dpo.trainer import make_trainer


def compute(model, pairs, folder, earlier=None):
    return complete(model, pairs, folder / "logps.parquet", earlier, "r1", HARDWARE, 0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma", "bert"])
def test_equals_trls_live_reference(name, tmp_path):
    stock = trl_trainer(name, tmp_path, packed=False)
    live = stock.compute_ref_log_probs(stock.model, stock.data_collator(PAIRS))
    # Cut as by `encode_pair`; TRL's collator cuts by itself.
    cut = [
        pair | {s: pair[s][: MAX_LENGTH - len(pair["prompt_ids"])] for s in ("chosen_ids", "rejected_ids")}
        for pair in PAIRS
    ]
    assert cut != PAIRS
    pairs = with_reference(cut, compute(make_policy(name), cut, tmp_path))
    for column, expected in zip(("ref_chosen_logps", "ref_rejected_logps"), live, strict=True):
        assert [pair[column] for pair in pairs] == pytest.approx(expected.tolist(), rel=1e-5)


def test_next_round_computes_new_replies_only(tmp_path, monkeypatch):
    model, passes = make_policy("llama"), []
    first = compute(model, PAIRS, tmp_path / "1")
    monkeypatch.setattr(
        reference_logps, "packed_output", lambda m, b: passes.append(b["targets"]) or packed_output(m, b)
    )
    resampled = [pair | {"rejected_ids": [70, 71, i + 3, 2]} for i, pair in enumerate(PAIRS)]
    second = compute(model, resampled, tmp_path / "2", tmp_path / "1/logps.parquet")
    assert [len(targets) for targets in passes] == [4]
    assert first.items() <= second.items() and len(second) == len(first) + 4
    compute(model, resampled, tmp_path / "2", tmp_path / "1/logps.parquet")
    assert len(passes) == 1
    assert (
        with_reference(PAIRS + resampled, second)[5]["ref_chosen_logps"]
        == first[reply_key([5], PAIRS[1]["chosen_ids"])]
    )


def test_killed_computation_resumes_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_logps, "TOKENS_PER_PASS", 30)
    model = make_policy("llama")
    whole = compute(model, PAIRS, tmp_path / "whole")
    write(tmp_path / "killed/logps.parquet", "r1", dict(list(whole.items())[:2]))
    assert compute(model, PAIRS, tmp_path / "killed") == whole
    assert read(tmp_path / "killed/logps.parquet", "r1") == whole


def test_gap_or_another_reference_is_an_error(tmp_path):
    logps = compute(make_policy("llama"), PAIRS[:2], tmp_path)
    with pytest.raises(UserError, match=r"pair 2: the reference's log-probability of the chosen reply is missing"):
        with_reference(PAIRS, logps)
    with pytest.raises(UserError, match=r"holds the log-probabilities of another reference model \(r1, not r2\)"):
        read(tmp_path / "logps.parquet", "r2")
    with pytest.raises(UserError, match="pair 0 has no ref_chosen_logps"):
        make_trainer(make_policy("llama"), make_tokenizer(), PAIRS, DPO, HARDWARE, 5, tmp_path)
    not_finite = [pair | {"ref_rejected_logps": math.nan} for pair in made_up()]
    with pytest.raises(UserError, match="pair 0 has no ref_rejected_logps"):
        make_trainer(make_policy("llama"), make_tokenizer(), not_finite, DPO, HARDWARE, 5, tmp_path)
