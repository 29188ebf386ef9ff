"""Pairs in rows against the same pairs in stock TRL's padded batches: log-probabilities, losses, gradients."""

import math
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import factory
import pytest
import torch
import transformers
from torch.nn.attention.flex_attention import create_mask

from attune.models.bert_decoder import AS_DECODER, decoder_class
from attune.models.loading import compile_layers
from attune.models.tiny import train_tokenizer
from attune.runtime.distributed import is_main_process, process_group
from attune.runtime.errors import UserError
from attune.training.common.trainer import run
from attune.training.dpo.packed_forward import bare, pair_output, prepare, unsupported_reason
from attune.training.dpo.packed_trainer import collate_pairs, trainer_classes
from attune.training.dpo.packing import Block, cheapest_rows, fill_rows, mask_function, pack, visible
from attune.training.dpo.reference_logps import complete, key, read, with_reference, write
from attune.training.dpo.trainer import make_trainer

VOCABULARY, WINDOW = 96, 6
HARDWARE = factory.hardware()
DPO = factory.dpo(beta=0.5, epochs=3, max_length=32, rounds={"e": factory.dpo_round()})
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
TURNS = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": WINDOW}
MODELS = {
    "llama": ("Llama", GROUPED),
    "mistral": ("Mistral", GROUPED | {"sliding_window": WINDOW}),
    "gemma": ("Gemma", GROUPED),
    "gemma2": ("Gemma2", GROUPED | TURNS | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0}),
    "gemma3": ("Gemma3", GROUPED | TURNS),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2} | TURNS | {"use_sliding_window": True}),
    "qwen3": ("Qwen3", GROUPED),
    "bert": (),
}
FAMILIES = ("llama", "mistral", "gemma", "bert")
# Contexts and replies longer than the window, replies that begin alike, one-token replies, a reply that is cut at 32.
PAIRS = [
    {"prompt_ids": [5, 6, 7, 8, 9, 10, 11, 12, 13], "chosen_ids": [20, 21, 22, 2], "rejected_ids": [30, 31, 2]},
    {"prompt_ids": [5], "chosen_ids": [40, 41, 42, 43, 44, 45, 46, 47, 48, 2], "rejected_ids": [2]},
    {"prompt_ids": [9, 8, 7], "chosen_ids": [50, 51, 52, 2], "rejected_ids": [50, 51, 60, 61, 62, 63, 64, 65, 2]},
    {"prompt_ids": list(range(60, 84)), "chosen_ids": [2], "rejected_ids": list(range(10, 30))},
]


def model_of(name: str):
    torch.manual_seed(3)
    if name == "bert":
        model = decoder_class()(transformers.BertConfig(**SIZES, **AS_DECODER))
    else:
        family, changes = MODELS[name]
        kind = getattr(transformers, family + ("ForCausalLM"))
        config = getattr(transformers, family + ("TextConfig" if family == "Gemma3" else "Config"))
        model = kind(config(**SIZES, **changes))
    for weight in model.parameters():  # so that position and attention weigh in, which at std 0.02 they hardly do
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
    return model


def adapted(name: str):
    model = model_of(name)
    torch.manual_seed(4)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, config).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["a b c"], 300, 64)


def sequences(pairs=PAIRS, limit=32):
    return [pair["prompt_ids"] + pair[f"{side}_ids"][: limit - len(pair["prompt_ids"])]
            for side in ("chosen", "rejected") for pair in pairs]  # fmt: skip


def plain_log_probs(model, pairs=PAIRS) -> list[torch.Tensor]:
    """Of every reply's tokens, each sequence alone through the model's own forward."""
    found = []
    contexts = [len(pair["prompt_ids"]) for pair in pairs] * 2
    for ids, start in zip(sequences(pairs), contexts, strict=True):
        logits = model(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1]
        found.append(logits.float().log_softmax(-1).gather(1, torch.tensor(ids[start:])[:, None])[:, 0])
    return found


def with_zeros(pairs=PAIRS):
    return [pair | {"ref_chosen_logps": -20.0 - i, "ref_rejected_logps": -21.5 + i} for i, pair in enumerate(pairs)]


def gradients(model):
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def assert_same_gradients(ours, theirs):
    assert ours.keys() == theirs.keys() != set()
    for name, grad in theirs.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-4, atol=1e-5 * float(grad.abs().max()), msg=name)


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_rows_give_the_log_probabilities_and_gradients_of_plain_forwards(name, one_row):
    plain = plain_log_probs(adapted(name))
    model = adapted(name)
    assert unsupported_reason(model) is None
    if one_row:
        prepare(model, HARDWARE, 32)
    batch = collate_pairs(with_zeros(), pad_id=0, max_length=32, one_row=one_row)
    output = pair_output(bare(model), batch)
    for row, expected in zip(output.log_probs, plain, strict=True):
        torch.testing.assert_close(row[: len(expected)], expected, rtol=1e-5, atol=1e-5)
        assert bool((row[len(expected) :] == 0).all())
    weights = torch.arange(1, 9.0)
    (output.log_probs.sum(1) @ weights).backward()
    other = adapted(name)
    (torch.stack([one.sum() for one in plain_log_probs(other)]) @ weights).backward()
    assert_same_gradients(gradients(model), gradients(other))


def test_compiled_layers_give_the_same():
    found = []
    for compiled in (False, True):
        model = adapted("llama")
        compile_layers(model, replace(HARDWARE, compile=compiled))
        output = pair_output(bare(model), collate_pairs(with_zeros(), pad_id=0, max_length=32, one_row=False))
        (output.log_probs.sum(1) @ torch.arange(1, 9.0)).backward()
        found.append((output.log_probs.detach(), gradients(model)))
    (plain, theirs), (compiled, ours) = found
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert_same_gradients(ours, theirs)
    assert any(one._compiled_call_impl is not None for one in model.modules())


def both_trainers(name, tokenizer, folder, **changes):
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    stock, packed = trainer_classes()
    made = []
    for i, kind in enumerate((stock, packed)):
        config = DPOConfig(output_dir=str(folder / str(i)), use_cpu=True, bf16=False, beta=0.5, max_length=32,
                           gradient_checkpointing=False, remove_unused_columns=False, **changes)  # fmt: skip
        policy = adapted(name)
        if kind is packed:
            prepare(policy, HARDWARE, 32)
        trainer = kind(model=policy, args=config, train_dataset=Dataset.from_list(with_zeros()),
                       processing_class=tokenizer)  # fmt: skip
        trainer.precompute_ref_logps = True
        made.append(trainer)
    return made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_loss_gradients_and_logged_rewards_are_those_of_stock_trl(name, loss, tokenizer, tmp_path):
    found = []
    for trainer in both_trainers(name, tokenizer, tmp_path, loss_type=[loss]):
        batch = trainer.data_collator(with_zeros())
        value = trainer.compute_loss(trainer.model.train(), batch)
        value.backward()
        logged = {k: v[0] for k, v in trainer._metrics["train"].items() if k != "num_tokens"}
        found.append((value.item(), logged, gradients(trainer.model)))
    (theirs, their_log, their_grads), (ours, our_log, our_grads) = found
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert our_log == pytest.approx(their_log, rel=1e-4, abs=1e-5)
    assert {"rewards/margins", "rewards/accuracies", "logps/chosen", "entropy", "logits/rejected"} <= our_log.keys()
    assert_same_gradients(our_grads, their_grads)


@pytest.mark.parametrize("one_row", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_company_in_a_batch_does_not_move_a_pair(name, one_row):
    policy = adapted(name)
    if one_row:
        prepare(policy, HARDWARE, 32)
    model = bare(policy)
    alone = [pair_output(model, collate_pairs([pair], 0, 32, one_row)).log_probs.sum(1) for pair in with_zeros()]
    together = pair_output(model, collate_pairs(with_zeros(), 0, 32, one_row)).log_probs.sum(1)
    backwards = pair_output(model, collate_pairs(with_zeros()[::-1], 0, 32, one_row)).log_probs.sum(1)
    torch.testing.assert_close(together.view(2, 4).T, torch.stack(alone), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(backwards.view(2, 4).flip(1), together.view(2, 4), rtol=1e-5, atol=1e-5)


def test_rows_hold_every_block_once_and_waste_little():
    lengths = [90, 40, 35, 30, 30, 25, 20, 20, 10, 5]
    for rows in (fill_rows(lengths, 90), cheapest_rows(lengths)):
        assert sorted(i for row in rows for i in row) == list(range(10))
    assert max(sum(lengths[i] for i in row) for row in fill_rows(lengths, 90)) <= 90
    assert len(fill_rows(lengths, 90)) == math.ceil(sum(lengths) / 90)
    with pytest.raises(ValueError, match="91 tokens does not fit into rows of 90"):
        fill_rows([91, 3], 90)


def test_layout_of_a_pair():
    laid = pack([Block([5, 6, 7], [[8, 9, 2], [10, 2]])], pad_id=0, one_row=True)
    assert laid["row_ids"].tolist() == [[5, 6, 7, 8, 9, 10]]
    assert laid["row_positions"].tolist() == [[0, 1, 2, 3, 4, 3]]
    assert laid["predictors"].tolist() == [[2, 3, 4], [2, 5, 0]]
    assert laid["targets"].tolist() == [[8, 9, 2], [10, 2, -100]]
    with pytest.raises(ValueError, match="empty context or reply"):
        pack([Block([], [[1], [2]])], pad_id=0, one_row=False)


@pytest.mark.parametrize("window", [None, 3])
def test_flex_attention_sees_what_the_dense_mask_shows(window):
    blocks = [Block(pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]]) for pair in PAIRS]
    laid = pack(blocks, pad_id=0, one_row=False)
    told = (laid["row_blocks"], laid["row_parts"], laid["row_positions"])
    rows, length = told[0].shape
    assert rows < len(PAIRS)
    dense = create_mask(mask_function(*told, window), rows, 1, length, length, device="cpu")
    assert torch.equal(dense, visible(*told, window))


def test_rejected_sees_the_context_within_its_window_by_position():
    laid = pack([Block([5, 6, 7, 8], [[9, 10, 11, 12, 2], [13, 14, 2]])], pad_id=0, one_row=True)
    seen = visible(laid["row_blocks"], laid["row_parts"], laid["row_positions"], window=3)[0, 0]
    # The first token of the rejected reply (place 8, position 4) sees positions 2 and 3 of the context and itself.
    assert seen[8].nonzero().flatten().tolist() == [2, 3, 8]


def reference_file(model, pairs, folder, earlier=None):
    return complete(model, pairs, folder / "logps.parquet", earlier, "r1", HARDWARE, 0)


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_reference_is_the_live_one(name, tmp_path, tokenizer):
    stock, _ = both_trainers(name, tokenizer, tmp_path)
    live = stock.compute_ref_log_probs(stock.model, stock.data_collator(PAIRS))
    # As stage `dpo` cuts them, which TRL does in its collator.
    cut = [
        pair | {f"{side}_ids": pair[f"{side}_ids"][: 32 - len(pair["prompt_ids"])] for side in ("chosen", "rejected")}
        for pair in PAIRS
    ]
    assert cut != PAIRS
    pairs = with_reference(cut, reference_file(adapted(name), cut, tmp_path))
    for column, expected in zip(("ref_chosen_logps", "ref_rejected_logps"), live, strict=True):
        assert [pair[column] for pair in pairs] == pytest.approx(expected.tolist(), rel=1e-5)


def test_next_round_computes_new_replies_only(tmp_path, monkeypatch):
    from attune.training.dpo import reference_logps

    model, seen = adapted("llama"), []
    first = reference_file(model, PAIRS, tmp_path / "1")
    monkeypatch.setattr(reference_logps, "pair_output", lambda m, b: seen.append(b["targets"]) or pair_output(m, b))
    drawn = [pair | {"rejected_ids": [70, 71, i + 3, 2]} for i, pair in enumerate(PAIRS)]
    second = reference_file(model, drawn, tmp_path / "2", tmp_path / "1/logps.parquet")
    assert [len(targets) for targets in seen] == [4]
    assert first.items() <= second.items() and len(second) == len(first) + 4
    reference_file(model, drawn, tmp_path / "2", tmp_path / "1/logps.parquet")
    assert len(seen) == 1
    assert with_reference(PAIRS + drawn, second)[5]["ref_chosen_logps"] == first[key([5], PAIRS[1]["chosen_ids"])]


def test_killed_computation_goes_on_to_the_bit(tmp_path, monkeypatch):
    from attune.training.dpo import reference_logps

    monkeypatch.setattr(reference_logps, "TOKENS_A_PASS", 30)
    model = adapted("llama")
    whole = reference_file(model, PAIRS, tmp_path / "whole")
    part = dict(list(whole.items())[:2])
    write(tmp_path / "killed/logps.parquet", "r1", part)
    assert reference_file(model, PAIRS, tmp_path / "killed") == whole
    assert read(tmp_path / "killed/logps.parquet", "r1") == whole


def test_gap_or_another_reference_is_an_error(tmp_path, tokenizer):
    known = reference_file(adapted("llama"), PAIRS[:2], tmp_path)
    with pytest.raises(UserError, match=r"pair 2: the reference's log-probability of the chosen reply is missing"):
        with_reference(PAIRS, known)
    with pytest.raises(UserError, match=r"holds the log-probabilities of another reference model \(r1, not r2\)"):
        read(tmp_path / "logps.parquet", "r2")
    with pytest.raises(UserError, match="pair 0 has no ref_chosen_logps"):
        make_trainer(adapted("llama"), tokenizer, PAIRS, DPO, HARDWARE, 5, tmp_path)
    spoilt = [pair | {"ref_rejected_logps": math.nan} for pair in with_zeros()]
    with pytest.raises(UserError, match="pair 0 has no ref_rejected_logps"):
        make_trainer(adapted("llama"), tokenizer, spoilt, DPO, HARDWARE, 5, tmp_path)


def test_model_without_rows_falls_back_with_one_warning(tokenizer, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    bloom = transformers.BloomForCausalLM(transformers.BloomConfig(vocab_size=300, hidden_size=16, n_layer=1, n_head=2))
    policy = get_peft_model(bloom, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(policy, tokenizer, PAIRS, DPO, HARDWARE, 5, tmp_path)
    about = [str(w.message) for w in caught if "falls back" in str(w.message)]
    assert len(about) == 1 and "the architecture bloom is none of llama" in about[0]
    run(trainer, tmp_path / "curves")
    assert trainer.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_no_reference_is_kept_in_memory(tokenizer, tmp_path):
    trainer = make_trainer(adapted("llama"), tokenizer, with_zeros(), DPO, HARDWARE, 5, tmp_path)
    assert trainer.ref_model is None
    assert set(trainer.model.peft_config) == {"default"}
    assert not [name for name, _ in trainer.model.named_parameters() if ".ref." in name]


def random_pairs(number: int, seed: int) -> list[dict]:
    draw = torch.Generator().manual_seed(seed)

    def tokens(most):
        length = int(torch.randint(1, most, (1,), generator=draw))
        return torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()

    return [{"prompt_ids": tokens(16), "chosen_ids": tokens(8), "rejected_ids": tokens(8)} for _ in range(number)]


def test_whole_run_of_three_epochs_ends_where_stock_trl_with_a_live_reference_does(tokenizer, tmp_path):
    from datasets import Dataset
    from trl.trainer.dpo_config import DPOConfig

    from attune.training.common.trainer import common_arguments

    train, held_out, margins = random_pairs(16, 1), random_pairs(24, 2), []
    dpo = replace(DPO, learning_rate=1e-3)
    ours, theirs = adapted("llama"), adapted("llama")
    known = complete(ours, train, tmp_path / "logps.parquet", None, "r", HARDWARE, 0)
    trainers = [make_trainer(ours, tokenizer, with_reference(train, known), dpo, HARDWARE, 5, tmp_path / "a")]
    config = DPOConfig(beta=dpo.beta, max_length=32, **common_arguments(dpo, HARDWARE, 5, tmp_path / "b"))
    trainers[0].remove_callback(next(c for c in trainers[0].callback_handler.callbacks if "StopAfter" in repr(c)))
    trainers.append(trainer_classes()[0](
        model=theirs, args=config, train_dataset=Dataset.from_list(train), processing_class=tokenizer))  # fmt: skip
    for trainer in trainers:
        trainer.train()
        assert trainer.state.global_step == 12
        bare(trainer.model).set_attn_implementation("eager")
        with torch.no_grad():
            log_probs = [one.sum() for one in plain_log_probs(trainer.model.eval(), held_out)]
        margins.append(torch.stack(log_probs[:24]) - torch.stack(log_probs[24:]))
    torch.testing.assert_close(margins[0], margins[1], rtol=1e-3, atol=1e-2)
    assert torch.equal(margins[0] > 0, margins[1] > 0)


def trained(folder: Path, name: str, micro: int) -> dict[str, torch.Tensor]:
    """Three steps of two pairs, on `WORLD_SIZE` processes that each take `micro` of them."""
    hardware, dpo = replace(HARDWARE, micro_batch_size=micro), replace(DPO, batch_size=2, max_length=64)
    tokenizer = train_tokenizer(["a b c"], 300, 64)
    policy = adapted(name)
    pairs = with_reference(PAIRS, complete(policy, PAIRS, folder / "logps.parquet", None, "r", hardware, 0))
    trainer = make_trainer(policy, tokenizer, pairs, dpo, hardware, 5, folder)
    run(trainer, folder / "curves")
    return {name: weight.detach() for name, weight in policy.named_parameters() if weight.requires_grad}


def test_two_processes_train_as_one(tmp_path):
    """Of every family, in one pair of processes."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
               __file__, str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    for family in FAMILIES:
        one, start = trained(tmp_path / family, family, 2), dict(adapted(family).named_parameters())
        for name, weight in one.items():
            assert float((weight - start[name]).abs().max()) > 1e-3
            # Of the whole weight: Adam divides by the gradient's size, so that of a tiny one the last digits stand out.
            assert float((two[family][name] - weight).norm() / weight.norm()) < 1e-5


if __name__ == "__main__":
    with process_group("cpu"):
        weights = {family: trained(Path(sys.argv[1]) / "ranks" / family, family, 1) for family in FAMILIES}
    if is_main_process():
        torch.save(weights, Path(sys.argv[1]) / "two.pt")
