"""Every loss on packed pairs against stock TRL: values, gradients and logged rewards, in parts and with dummy pairs."""

import math
from dataclasses import replace
from functools import partial

import factory
import pytest
import torch
from accelerate import Accelerator
from dpo_models import (
    DPO,
    HARDWARE,
    MAX_LENGTH,
    PAIRS,
    gradients,
    make_model,
    make_policy,
    make_tokenizer,
    trainer_of,
    trl_trainer,
    with_made_up_reference,
)

from attune.config.sections.preference_losses import LOSSES, REFERENCE_FREE
from attune.models.loading import add_adapter, load_adapter
from attune.runtime.errors import ModelError, UserError
from attune.training.common.trainer import run
from attune.training.dpo.packed_batches import DUMMY_PAIR
from attune.training.dpo.reference_logps import at_shared_length, complete, with_reference
from attune.training.dpo.trainer import make_trainer
from attune.training.dpo.trl_losses import at_zero_margin, config_arguments

OF_DPO_TRAINER = [name for name in LOSSES if name not in REFERENCE_FREE]
SORTING = ("aot", "aot_unpaired")
CASES = {
    **{name: {"loss": name} for name in OF_DPO_TRAINER},
    "smoothed": {"loss": "robust", "label_smoothing": 0.3},
    "discopop-tau": {"loss": "discopop", "discopop_tau": 0.2},
    "rpo": {"loss": "sigmoid", "sft_weight": 0.7},
    "mpo": {"loss": ["sigmoid", "bco_pair"], "loss_weights": [0.8, 0.2], "sft_weight": 1.0},
    "ld": {"loss": "sigmoid", "ld_alpha": 0.4},
    "forward": {"loss": "ipo", "f_divergence": "forward_kl"},
    "js": {"loss": "hinge", "f_divergence": "js_divergence"},
    "alpha": {"loss": "sigmoid", "f_divergence": "alpha_divergence", "f_alpha": 0.3},
}
FREE = {"simpo": {"loss": "simpo", "simpo_gamma": 1.2}, "simpo-sft": {"loss": "simpo", "sft_weight": 0.3,
        "label_smoothing": 0.1}, "orpo": {"loss": "orpo"}}  # fmt: skip
LOGGED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
          "logps/rejected")  # fmt: skip


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """One trainer of each kind, whose loss `compute` changes: making one takes longer than a loss."""
    folder = tmp_path_factory.mktemp("trl")
    made = {packed: trl_trainer("llama", folder / str(packed), packed) for packed in (False, True)}
    made["free"] = trl_trainer("llama", folder / "free", True, replace(DPO, loss="simpo"))
    made["free-contexts"] = trl_trainer("llama", folder / "contexts", True, replace(DPO, loss="orpo"))
    return made


def settle(trainer, dpo):
    """Give a trainer the loss of `dpo`, as its constructor reads it from `DPOConfig`."""
    trainer.dpo = dpo
    if dpo.has_reference:
        arguments = config_arguments(dpo) | {"loss_types": config_arguments(dpo)["loss_type"]}
        for name in ("beta", "loss_types", "loss_weights", "label_smoothing", "ld_alpha", "f_divergence_type",
                     "f_alpha_divergence_coef"):  # fmt: skip
            setattr(trainer, name, arguments[name])
        trainer.args.discopop_tau = arguments.get("discopop_tau", 0.05)


def compute(trainer, dpo, parts):
    """Loss, gradients and log of an effective batch of micro-batches, as transformers accumulates them."""
    settle(trainer, dpo)
    trainer._metrics["train"].clear()
    trainer.model.train().zero_grad()
    batches = [trainer.data_collator(pairs) for pairs in parts]
    if hasattr(trainer, "batch"):
        # The methods of Trainer fetch the batches that they are given.
        trainer.get_batch_samples(iter(batches), len(batches), torch.device("cpu"))
    total = 0.0
    for batch in batches:
        loss = trainer.compute_loss(trainer.model, dict(batch)) / len(batches)
        loss.backward()
        total += loss.item()
    log = {name: sum(values) / len(values) for name, values in trainer._metrics["train"].items()}
    return total, gradients(trainer.model), log


def assert_same(ours, theirs, logged=LOGGED):
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys() != set()
    for name, grad in theirs[1].items():
        torch.testing.assert_close(ours[1][name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)
    for name in logged:
        assert ours[2][name] == pytest.approx(theirs[2][name], rel=1e-5, abs=1e-5), name


@pytest.mark.parametrize("name", CASES)
def test_packed_equals_stock_trl(name, trainers):
    """Whole, in micro-batches of 1 and 3, and with dummy pairs among the others and alone."""
    dpo, pairs = replace(DPO, **CASES[name]), with_made_up_reference()
    theirs = compute(trainers[False], dpo, [pairs])
    assert_same(compute(trainers[True], dpo, [pairs]), theirs)
    assert_same(compute(trainers[True], dpo, [[DUMMY_PAIR, *pairs, DUMMY_PAIR]]), theirs)
    if not set(dpo.losses) & set(SORTING):
        assert_same(compute(trainers[True], dpo, [pairs[:1], [DUMMY_PAIR], pairs[1:]]), theirs, logged=())
        assert_same(compute(trainers[True], dpo, [pairs[:1], pairs[1:]]), theirs)


def stock_reference_free(dpo, policy):
    """Loss, gradients and log of TRL's trainer of a loss without a reference, on a padded batch."""
    from torch.nn.utils.rnn import pad_sequence
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    kind = ORPOTrainer if dpo.loss == "orpo" else CPOTrainer
    trainer = kind.__new__(kind)
    settings = {"beta": dpo.beta, "loss_type": "simpo", "simpo_gamma": dpo.of_loss("simpo_gamma"), "alpha": 0.0,
                "label_smoothing": dpo.of_loss("label_smoothing"), "cpo_alpha": dpo.sft_weight, "pad_token_id": 0,
                "padding_value": 0, "is_encoder_decoder": False, "aux_loss_enabled": False,
                "accelerator": Accelerator(cpu=True)}  # fmt: skip
    for name, value in settings.items():
        setattr(trainer, name, value)
    batch, pad = {}, partial(pad_sequence, batch_first=True)
    for side in ("chosen", "rejected"):
        ids = [torch.tensor((pair["prompt_ids"] + pair[f"{side}_ids"])[:MAX_LENGTH]) for pair in PAIRS]
        labels = [row.clone() for row in ids]
        for row, pair in zip(labels, PAIRS, strict=True):
            row[: len(pair["prompt_ids"])] = -100
        batch[f"{side}_input_ids"], batch[f"{side}_labels"] = pad(ids), pad(labels, padding_value=-100)
        batch[f"{side}_attention_mask"] = pad([torch.ones_like(row) for row in ids])
    loss, log = trainer.get_batch_loss_metrics(policy.train(), batch)
    loss.backward()
    return loss.item(), gradients(policy), log


@pytest.mark.parametrize("name", FREE)
def test_losses_without_a_reference_equal_trls_trainers(name, trainers):
    dpo = replace(DPO, **FREE[name])
    ours = trainers["free-contexts" if dpo.loss == "orpo" else "free"]
    theirs = stock_reference_free(dpo, make_policy("llama"))
    logged = LOGGED if dpo.loss == "simpo" and not dpo.sft_weight else (*LOGGED, "nll_loss")
    for parts in ([PAIRS], [PAIRS[:1], PAIRS[1:]], [[*PAIRS, DUMMY_PAIR]]):
        assert_same(compute(ours, dpo, parts), theirs, logged)
    assert_same(compute(ours, dpo, [PAIRS[:3], [DUMMY_PAIR], PAIRS[3:]]), theirs, logged=())


LN2 = math.log(2)
ZERO_MARGIN = {
    "sigmoid": LN2, "sigmoid_norm": LN2, "ipo": 1 / (2 * 0.5) ** 2, "hinge": 1, "robust": LN2,
    "exo_pair": math.log(0.5) - 0.5 * math.log(1e-3 * (1 - 1e-3)), "nca_pair": 2 * LN2, "apo_zero": 1, "apo_down": 1,
    "discopop": LN2 / 2 + 0.5, "bco_pair": 2 * LN2, "sppo_hard": 2, "aot": LN2, "aot_unpaired": LN2,
    "smoothed": LN2, "discopop-tau": LN2 / 2 + 0.5, "rpo": LN2, "mpo": 0.8 * LN2 + 0.2 * 2 * LN2, "ld": LN2,
    "forward": 1, "js": 1, "alpha": LN2,
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_loss_at_zero_margin(name, trainers):
    """By hand, at beta = 0.5; the likelihood part is no part of it."""
    trainer = trainers[True]
    settle(trainer, replace(DPO, **CASES[name]))
    trainer._metrics["train"].clear()
    value, slope = at_zero_margin(trainer)
    assert value == pytest.approx(ZERO_MARGIN[name], rel=1e-5)
    assert slope > 0
    assert not trainer._metrics["train"]
    if name == "sigmoid":
        assert slope == 0.5 / 2


@pytest.mark.parametrize("name", ["mpo", "ld", "ipo"])
def test_first_step_has_the_loss_at_zero_margin(name, tmp_path):
    """With the policy as reference; a reference that is off by 5 nats stops the run."""
    dpo = replace(DPO, **CASES[name], epochs=1, max_length=64)  # no reply is cut
    policy = make_policy("llama")
    pairs = [*PAIRS, *map(at_shared_length, PAIRS)]
    logps = complete(policy, pairs, tmp_path / "logps.parquet", None, "r", HARDWARE, 0)
    rows = with_reference(PAIRS, logps, dpo.ld_alpha)
    trainer = make_trainer(policy, make_tokenizer(), rows, dpo, HARDWARE, 5, tmp_path / "a")
    run(trainer, tmp_path / "curves")
    first = trainer.state.log_history[0]
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert first["loss"] - dpo.sft_weight * first.get("nll_loss", 0) == pytest.approx(ZERO_MARGIN[name], rel=1e-4)
    wrong = [row | {"ref_chosen_logps": row["ref_chosen_logps"] - 5} for row in rows]
    trainer = make_trainer(make_policy("llama"), make_tokenizer(), wrong, dpo, HARDWARE, 5, tmp_path / "b")
    with pytest.raises(UserError, match="the loss at the first step is"):
        run(trainer, tmp_path / "other")


def test_a_sorted_batch_must_be_one_micro_batch(tmp_path):
    """Also after running out of memory, which halves the micro-batch."""
    dpo, halved = replace(DPO, loss="aot"), replace(HARDWARE, micro_batch_size=2)
    with pytest.raises(UserError, match=r"aot sorts the 4 pairs of a batch, .*: lower dpo.batch_size"):
        make_trainer(make_policy("llama"), make_tokenizer(), with_made_up_reference(), dpo, halved, 5, tmp_path)


def test_no_reference_and_no_packed_batches(tmp_path):
    import transformers
    from peft import LoraConfig, get_peft_model

    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2))
    policy = get_peft_model(bloom, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match=r"dpo.loss = orpo is computed from packed batches alone, and"):
        make_trainer(policy, make_tokenizer(), PAIRS, replace(DPO, loss="orpo"), HARDWARE, 5, tmp_path)


def test_adapted_and_whole_modules(tmp_path):
    """Only what the params name is trained, the head gets a gradient from packed pairs, and both are saved."""
    lora = factory.lora(target_modules=["q_proj", "v_proj"], modules_to_save=["lm_head"])
    policy = add_adapter(make_model("llama"), lora, 3)
    trainer = trainer_of(policy, make_tokenizer(), with_made_up_reference(), tmp_path / "a", True, DPO, MAX_LENGTH)
    trainer.compute_loss(policy.train(), trainer.data_collator(with_made_up_reference())).backward()
    grads = gradients(policy)
    assert {name.split(".")[-4] if "lora_" in name else "lm_head" for name in grads} == {"q_proj", "v_proj", "lm_head"}
    assert all("lm_head" in name for name in grads if "lora_" not in name)
    (head,) = (grad for name, grad in grads.items() if "lm_head" in name)
    assert float(head.abs().max()) > 0
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += 0.01
    policy.save_pretrained(str(tmp_path / "adapter"))
    loaded = load_adapter(make_model("llama"), tmp_path / "adapter", trainable=True)
    weights = {name: weight for name, weight in loaded.named_parameters() if weight.requires_grad}
    assert weights.keys() == grads.keys()
    for name, weight in policy.named_parameters():
        if weight.requires_grad:
            assert torch.equal(weights[name], weight), name


def test_whole_modules_of_a_model_in_bf16_are_fp32(tmp_path):
    """As on a GPU; a step that bf16 would round away is still there after saving and loading."""
    lora = factory.lora(modules_to_save=["lm_head"])
    policy = add_adapter(make_model("llama").to(torch.bfloat16), lora, 3)
    (head,) = (weight for name, weight in policy.named_parameters() if "lm_head.modules_to_save" in name)
    assert head.dtype == torch.float32 and policy.get_input_embeddings().weight.dtype == torch.bfloat16
    with torch.no_grad():
        head += 1e-6
    policy.save_pretrained(str(tmp_path))
    loaded = load_adapter(make_model("llama").to(torch.bfloat16), tmp_path, trainable=True)
    (again,) = (weight for name, weight in loaded.named_parameters() if "lm_head.modules_to_save" in name)
    assert torch.equal(again, head)


def test_a_module_that_the_model_does_not_have():
    for names in ({"target_modules": ["q_proj", "query"]}, {"modules_to_save": ["head"]}):
        with pytest.raises(ModelError, match=r"lora.(target_modules names query|modules_to_save names head), which"):
            add_adapter(make_model("llama"), factory.lora(**names), 3)
