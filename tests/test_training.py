"""Training on a model of a few thousand weights: which are trained or frozen, and that a rerun gives equal bytes."""

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file

from attune.config.schema import Dpo, Params
from attune.data.dialogue import Dialogue, Turn, write_dialogues
from attune.data.pair import Pair
from attune.models.loading import load_adapter, load_base, load_tokenizer, load_variant
from attune.models.tiny import make_model, train_tokenizer
from attune.pairs.build import with_future_rejected
from attune.pairs.metrics import write_pairs
from attune.runtime.errors import UserError
from attune.training.common.packed_forward import prepare
from attune.training.common.resume import last_checkpoint
from attune.training.common.trainer import export_checkpoint, save_adapter
from attune.training.dpo import round as dpo_round
from attune.training.dpo.encoding import encode_pairs
from attune.training.dpo.movement import measure
from attune.training.dpo.reference_logps import complete, identity, read, with_reference
from attune.training.sft.fine_tune import fine_tune as train_adapter
from stages import sft as sft_stage

HARDWARE = factory.hardware()
LORA = factory.lora(dropout=0.1)
SFT = factory.sft()


DPO = factory.dpo(epochs=3)
WORDS = [
    "i",
    "feel",
    "so",
    "happy",
    "sad",
    "today",
    "my",
    "dog",
    "ran",
    "away",
    "and",
    "came",
    "home",
    "that",
    "is",
    "great",
    "sorry",
    "to",
    "hear",
    "it",
    "what",
    "happened",
    "then",
]


def text(seed: int, length: int) -> str:
    picks = hashlib.sha256(str(seed).encode()).digest()
    return " ".join(WORDS[b % len(WORDS)] for b in picks[:length])


def dialogue(i: int) -> Dialogue:
    turns = [Turn("user" if t % 2 == 0 else "assistant", text(10 * i + t, 5 + (i + t) % 6)) for t in range(4)]
    return Dialogue(f"train/{i:03}", "sample", "train", "sad", tuple(turns))


def pair(i: int) -> Pair:
    one = dialogue(i)
    return Pair(one.id, 1, one.turns[:3], one.turns[3].text, text(7000 + i, 4 + i % 7), "sad", "joyful", "train/x")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny = factory.tiny()
    tokenizer = train_tokenizer((t.text for i in range(32) for t in dialogue(i).turns), 400, 128)
    make_model(tokenizer, tiny, seed=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "base.json").write_text(json.dumps({"name": "micro", "source": "made"}))
    return folder


def fine_tune(base: Path, folder: Path, target: Path, **changes) -> dict[str, torch.Tensor]:
    settings = {"sft": SFT, "lora": LORA, "hardware": HARDWARE, "seed": 5} | changes
    model = load_base(base, settings["hardware"])
    policy = train_adapter(
        model,
        load_tokenizer(base),
        [dialogue(i) for i in range(32)],
        *settings.values(),
        folder / "checkpoints",
        folder / "curves",
    )
    save_adapter(policy, target)
    return load_file(target / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def sft(base, tmp_path_factory) -> Path:
    target = base.parent / "sft"
    fine_tune(base, tmp_path_factory.mktemp("sft"), target)
    return target


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "e1.parquet"
    write_pairs([pair(i) for i in range(24)], path)
    return path


def run_params(dpo: Dpo = DPO, init: str = "models/sft", **changes) -> Params:
    """The params of a round `e` from `init`."""
    return factory.params(dpo=dpo, rounds={"e": factory.dpo_round(init=init)}, seed=5, lora=LORA, **changes)


def train_round(base: Path, pairs: Path, init: Path, folder: Path, dpo: Dpo = DPO, **changes) -> Path:
    params = run_params(dpo, str(init), **changes)
    return dpo_round.train_round("e", params, base, pairs, folder / "checkpoints", folder / "curves")


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_sft_moves_every_adapter_weight_and_nothing_else(base, tmp_path):
    before = load_file(base / "model.safetensors")
    trained = fine_tune(base, tmp_path, tmp_path / "sft")
    assert load_file(base / "model.safetensors").keys() == before.keys()
    # B begins at zero (LoRA section 4.1), so a B that is not zero anywhere in a row has been trained.
    assert all(bool((w != 0).any(dim=1).all()) for name, w in trained.items() if "lora_B" in name)
    modules = {name.split(".lora_")[0].rsplit(".", 1)[1] for name in trained}
    assert modules == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def judged(tmp_path, monkeypatch, base, *qualities):
    """The params and files of a run in `tmp_path`, of dialogues with these qualities."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft_stage, "BASE", base)
    dialogues = [replace(dialogue(i), quality=quality) for i, quality in enumerate(qualities)]
    write_dialogues(dialogues, sft_stage.TRAIN)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    adapters = {name: factory.adapter(quality=name.removeprefix("sft-")) for name in ("sft-high", "sft-low")}
    return factory.params(sft=SFT, adapters=adapters, lora=LORA, seed=5), dialogues


def test_sft_on_the_high_quality_learns_from_it_alone(base, tmp_path, monkeypatch):
    """Half of the dialogues are high, some low, some not judged: the adapter is that of the high ones by themselves."""
    params, dialogues = judged(tmp_path, monkeypatch, base, *["high", "low", "high", None] * 4)
    sft_stage.main("sft-high", params)
    high = [one for one in dialogues if one.quality == "high"]
    model, tokenizer = load_base(base, HARDWARE), load_tokenizer(base)
    settings = (params.sft, LORA, HARDWARE, 5, tmp_path / "checkpoints", tmp_path / "curves")
    save_adapter(train_adapter(model, tokenizer, high, *settings), tmp_path / "high")
    made, expected = ({path.name: path.read_bytes() for path in Path(f).iterdir()} for f in ("models/sft-high", "high"))
    assert len(high) == 8 and made == expected
    assert Path("reports/curves/sft-high/plots/metrics/loss.tsv").is_file()
    assert not Path("models/sft").exists()


@pytest.mark.parametrize(
    ("qualities", "asked", "message"),
    [
        (
            [None, None],
            "high",
            r"train\.parquet: an adapter needs dialogues of quality high, .* train split has no quality labels: ",
        ),
        (["low", None], "high", "the train split has only dialogues of quality low: choose another corpus"),
        (["high"], "fair", "'sft-fair' is none of adapters: sft-high, sft-low"),
    ],
)
def test_a_quality_that_cannot_be_learnt_from(qualities, asked, message, base, tmp_path, monkeypatch):
    params, _ = judged(tmp_path, monkeypatch, base, *qualities)
    with pytest.raises(UserError, match=message):
        sft_stage.main(f"sft-{asked}", params)
    assert not Path("models").exists() and not Path(".checkpoints").exists()


def test_same_seed_gives_the_same_adapter_and_another_seed_another(base, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        fine_tune(base, tmp_path / name, tmp_path / f"sft-{name}", seed=seed)
    assert digest(tmp_path / "sft-a") == digest(tmp_path / "sft-b") != digest(tmp_path / "sft-c")


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_sft_killed_in_the_middle_of_an_epoch_resumes_to_the_bit(dtype, base, tmp_path):
    """32 dialogues in batches of 4 are 8 steps, with dropout; what follows the checkpoint of the fifth is lost."""
    hardware = replace(HARDWARE, dtype=dtype, micro_batch_size=2)
    fine_tune(base, tmp_path, tmp_path / "whole", hardware=hardware)
    shutil.copytree(tmp_path / "curves", tmp_path / "whole-curves")
    shutil.rmtree(tmp_path / "checkpoints/checkpoint-8")
    kept = last_checkpoint(tmp_path / "checkpoints") / "trainer_state.json"
    written = kept.stat().st_mtime_ns
    fine_tune(base, tmp_path, tmp_path / "resumed", hardware=hardware)
    assert digest(tmp_path / "resumed") == digest(tmp_path / "whole")
    # A run from the beginning would have the same weights, but would have written this checkpoint again.
    assert kept.parent.name == "checkpoint-5" and kept.stat().st_mtime_ns == written
    curves = sorted((tmp_path / "whole-curves").rglob("*.tsv"))
    assert curves
    for curve in curves:
        assert (tmp_path / "curves" / curve.relative_to(tmp_path / "whole-curves")).read_text() == curve.read_text()


def test_a_fraction_of_an_epoch_is_as_many_of_its_steps_with_a_schedule_that_ends_there(base, tmp_path):
    """32 dialogues in batches of 4 are 8 steps; a quarter is 2."""
    fine_tune(base, tmp_path, tmp_path / "quarter", sft=replace(SFT, epochs=0.25))
    state = json.loads((last_checkpoint(tmp_path / "checkpoints") / "trainer_state.json").read_text())
    assert (state["global_step"], state["max_steps"], state["log_history"][0]["learning_rate"]) == (2, 2, 5e-3)


def test_micro_batches_do_not_change_the_gradient(base, tmp_path):
    """8 dialogues a step as 1 x 8 and as 4 x 2: the loss is a mean over tokens, not over micro-batches."""
    no_dropout = replace(LORA, dropout=0.0)
    sft = replace(SFT, batch_size=8)
    whole = fine_tune(base, tmp_path / "1", tmp_path / "a", sft=sft, lora=no_dropout,
                      hardware=replace(HARDWARE, micro_batch_size=8))  # fmt: skip
    split = fine_tune(base, tmp_path / "2", tmp_path / "b", sft=sft, lora=no_dropout,
                      hardware=replace(HARDWARE, micro_batch_size=2))  # fmt: skip
    for name, weight in whole.items():
        torch.testing.assert_close(weight, split[name], rtol=1e-3, atol=2e-5)


def test_overlong_pairs_are_left_out(base, pairs, tmp_path, capfd):
    """Those that stay are not truncated; by default all stay."""
    tokenizer = load_tokenizer(base)
    whole, _ = encode_pairs(tokenizer, pairs, 500)
    lengths = [len(p["prompt_ids"]) + max(len(p["chosen_ids"]), len(p["rejected_ids"])) for p in whole]
    limit = sorted(lengths)[11]
    kept, _ = encode_pairs(tokenizer, pairs, limit, drop=True)
    assert kept == [p for p, length in zip(whole, lengths, strict=True) if length <= limit] != whole
    assert f"{24 - len(kept)} of 24 pairs are longer than {limit} tokens: left out" in capfd.readouterr().out
    assert len(encode_pairs(tokenizer, pairs, limit)[0]) == 24
    with pytest.raises(UserError, match=r"no pair to train on: raise dpo.max_length = 8 with dpo.overlong = drop"):
        train_round(base, pairs, base, tmp_path, replace(DPO, max_length=8, overlong="drop"))


def test_dpo_starts_at_ln_2(base, sft, pairs, tmp_path):
    end = train_round(base, pairs, sft, tmp_path)
    first = json.loads((end / "trainer_state.json").read_text())["log_history"][0]
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_dpo_changes_the_policy_and_not_the_reference(base, sft, pairs, tmp_path):
    end = train_round(base, pairs, sft, tmp_path)
    start = adapter(sft)
    assert all(not torch.equal(weight, start[name]) for name, weight in adapter(end).items())
    assert not (end / "ref").exists()
    reference = adapter(end / "reference/adapter")
    assert reference.keys() == start.keys()
    assert all(torch.equal(weight, start[name]) for name, weight in reference.items())


def test_dpo_raises_the_margin(base, sft, pairs, tmp_path):
    """In training's log, and where the rounds are measured; there the reference itself moved nothing."""
    end = three_rounds(base, sft, pairs, tmp_path, dpo=replace(DPO, learning_rate=2e-2))
    last = json.loads((end / "trainer_state.json").read_text())["log_history"][-1]
    assert last["rewards/margins"] > 0
    start, moved = measure(base, end, end / "reference/adapter", pairs, run_params())
    assert measure(base, sft, sft, pairs, run_params()) == (start, start)
    assert (start.margin, start.accuracy, start.kl) == (0, 50, 0)
    assert moved.margin > 0 and moved.accuracy > 50 and moved.kl > 0
    assert moved.chosen_logp - moved.rejected_logp > start.chosen_logp - start.rejected_logp


def test_wrong_reference_is_refused(base, sft, pairs, tmp_path):
    from attune.training.common.trainer import run
    from attune.training.dpo.trainer import make_trainer

    tokenizer = load_tokenizer(base)
    policy = load_adapter(load_base(base, HARDWARE), sft, trainable=True)
    encoded = encoded_pairs(base, sft, policy, tokenizer, pairs, tmp_path)
    trainer = make_trainer(policy, tokenizer, encoded, DPO, HARDWARE, 5, tmp_path / "2")
    for name, weight in trainer.model.named_parameters():
        if "lora_B.default" in name:
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(1))
    with pytest.raises(UserError, match=r"loss at the first step is .*, not 0\.6931"):
        run(trainer, tmp_path / "curves")


def test_chain_from_the_base_model(base, pairs, tmp_path):
    first = train_round(base, pairs, base, tmp_path / "1")
    log = json.loads((first / "trainer_state.json").read_text())["log_history"][0]
    assert (log["loss"], log["rewards/margins"]) == (pytest.approx(math.log(2), abs=1e-6), 0)
    reference = adapter(first / "reference/adapter")
    assert all(not weight.any() for name, weight in reference.items() if "lora_B" in name)
    assert {w.shape[0] for name, w in reference.items() if "lora_A" in name} == {LORA.r}
    trained = adapter(first)
    assert all(bool(weight.any()) for name, weight in trained.items() if "lora_B" in name)
    export_checkpoint(first, tmp_path / "out")
    second = train_round(base, pairs, tmp_path / "out", tmp_path / "2")
    assert digest(second) != digest(first)
    assert all(torch.equal(weight, reference[name]) for name, weight in adapter(second / "reference/adapter").items())


def test_rounds_from_the_base_equal_one_run(base, pairs, tmp_path):
    fresh = dpo_round.starting_adapter(base, base, run_params(), tmp_path)
    rounds = three_rounds(base, base, pairs, tmp_path / "r")
    assert digest(rounds) == digest(one_run(base, fresh, pairs, tmp_path / "w"))


def encoded_pairs(base, sft, policy, tokenizer, pairs, folder) -> list[dict]:
    """The pairs with the log-probabilities of `policy`, the adapter in `sft`, as reference."""
    prepare(policy, HARDWARE, DPO.max_length)
    encoded, _ = encode_pairs(tokenizer, pairs, DPO.max_length)
    logps = complete(policy, encoded, folder / "logps.parquet", None, identity(base, sft, HARDWARE), HARDWARE, 0)
    return with_reference(encoded, logps)


def curves(folder: Path) -> dict[str, str]:
    """The DVCLive files of a round, by their names."""
    root = folder / "curves/plots/metrics"
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*.tsv")}


def three_rounds(base: Path, sft: Path, pairs: Path, folder: Path, dpo: Dpo = DPO) -> Path:
    init = sft
    for key in ("e1", "e2", "e3"):
        export_checkpoint(train_round(base, pairs, init, folder / key, dpo=dpo), folder / f"out-{key}")
        init = folder / f"out-{key}"
    return init


def test_first_round_computes_the_reference_of_later_rounds(base, sft, tmp_path):
    """Later rounds have nothing left to compute; the values are those that each round by itself would compute."""
    rounds = [[replace(pair(i), rejected=text(100 * e + i, 4 + i % 7)) for i in range(24)] for e in (1, 2)]
    rounds[0] = with_future_rejected(rounds[0], rounds[1:])
    init, logps = sft, []
    for number, pairs in enumerate(rounds, start=1):
        write_pairs(pairs, tmp_path / f"e{number}.parquet")
        end = train_round(base, tmp_path / f"e{number}.parquet", init, tmp_path / f"r{number}")
        export_checkpoint(end, tmp_path / f"out-{number}")
        init = tmp_path / f"out-{number}"
        logps.append(read(init / "reference/logps.parquet", identity(base, sft, HARDWARE)))
    assert logps[1] == logps[0] and len(logps[0]) == 3 * 24
    write_pairs(rounds[1], tmp_path / "alone.parquet")
    alone = read(
        train_round(base, tmp_path / "alone.parquet", sft, tmp_path / "alone") / "reference/logps.parquet",
        identity(base, sft, HARDWARE),
    )
    assert len(alone) == 2 * 24
    assert [logps[0][key] for key in alone] == pytest.approx(list(alone.values()), rel=1e-5)


def test_rounds_of_unequal_size(base, sft, tmp_path):
    """Where rounds have unequal numbers of pairs, epoch and learning-rate schedule still run over all rounds."""
    init, rates = sft, []
    for number, size in enumerate((24, 12, 40)):
        path = tmp_path / f"{size}.parquet"
        write_pairs([pair(i) for i in range(size)], path)
        end = train_round(base, path, init, tmp_path / str(size))
        state = json.loads((end / "trainer_state.json").read_text())
        steps = size // DPO.batch_size
        counts = (state["epoch"], state["global_step"], state["max_steps"])
        assert counts == (number + 1, (number + 1) * steps, 3 * steps)
        rates += [
            ((entry["step"] - 1) / (3 * steps), entry["learning_rate"])
            for entry in state["log_history"]
            if "learning_rate" in entry and entry["step"] > number * steps
        ]
        export_checkpoint(end, tmp_path / f"out-{size}")
        init = tmp_path / f"out-{size}"
    assert len(rates) > 4
    for share, rate in rates:
        assert rate == pytest.approx(DPO.learning_rate * (1 + math.cos(math.pi * share)) / 2)


def one_run(base: Path, sft: Path, pairs: Path, folder: Path) -> Path:
    """Three epochs in one process: the same trainer without the callback that ends a round."""
    from attune.training.common.trainer import run
    from attune.training.dpo.trainer import make_trainer

    tokenizer = load_tokenizer(base)
    policy = load_adapter(load_base(base, HARDWARE), sft, trainable=True)
    encoded = encoded_pairs(base, sft, policy, tokenizer, pairs, folder)
    trainer = make_trainer(policy, tokenizer, encoded, DPO, HARDWARE, 5, folder / "checkpoints")
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "StopAfterEpoch":
            trainer.remove_callback(callback)
    run(trainer, folder / "curves")
    save_adapter(trainer.model, folder / "out")
    return folder / "out"


def test_rounds_equal_one_run(base, sft, pairs, tmp_path):
    rounds, whole = three_rounds(base, sft, pairs, tmp_path / "r"), one_run(base, sft, pairs, tmp_path / "w")
    assert digest(rounds) == digest(whole)


KILLED = {
    "fp32": ({}, {}),
    "bf16": ({"dtype": "bf16"}, {}),
    "parts": (
        {"micro_batch_size": 2},
        {"loss": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2], "sft_weight": 1.0},
    ),
    "ld": ({}, {"loss": "ipo", "ld_alpha": 0.5}),
    "sorted": ({}, {"loss": "aot"}),
    "simpo": ({"micro_batch_size": 2}, {"loss": "simpo", "sft_weight": 0.5}),
    "orpo": ({"micro_batch_size": 2}, {"loss": "orpo"}),
}


@pytest.mark.parametrize("case", KILLED)
def test_killed_round_resumes_to_the_bit(case, base, sft, pairs, tmp_path):
    """24 pairs in batches of 4 are 6 steps; a checkpoint is written after the fifth. What follows it is lost."""
    machine, loss = KILLED[case]
    settings = {"hardware": replace(HARDWARE, **machine), "dpo": replace(DPO, **loss)}
    undisturbed = train_round(base, pairs, sft, tmp_path / "whole", **settings)
    train_round(base, pairs, sft, tmp_path / "killed", **settings)
    shutil.rmtree(tmp_path / "killed/checkpoints/checkpoint-6")
    assert last_checkpoint(tmp_path / "killed/checkpoints").name == "checkpoint-5"
    resumed = train_round(base, pairs, sft, tmp_path / "killed", **settings)
    assert digest(resumed) == digest(undisturbed)
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole")


def test_finished_round_is_not_trained_again(base, sft, pairs, tmp_path):
    first = digest(train_round(base, pairs, sft, tmp_path))
    written = curves(tmp_path)
    assert "1\t" in written["loss.tsv"] and written.keys() > {"rewards/accuracies.tsv"}
    # DVC removes the outs of a stage before it runs it again.
    shutil.rmtree(tmp_path / "curves")
    end = train_round(base, pairs, sft, tmp_path)
    assert end.name == "checkpoint-6" and digest(end) == first
    assert curves(tmp_path) == written


def test_round_exports_no_pickle(base, sft, pairs, tmp_path):
    export_checkpoint(train_round(base, pairs, sft, tmp_path), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "reference"} <= names
    assert "training_args.bin" not in names


def test_merged_variant_answers_as_the_adapter_does(base, sft):
    model = load_base(base, HARDWARE)
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        adapted = load_adapter(model, sft, trainable=False).eval()(input_ids=ids).logits
        merged = load_variant(base, sft, HARDWARE)(input_ids=ids).logits
        plain = load_variant(base, base, HARDWARE)(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(plain, adapted, atol=1e-3)
