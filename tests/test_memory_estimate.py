"""The memory estimate against a step of this project's trainers, and against published numbers."""

import json
import re
from dataclasses import replace
from functools import partial

import pytest
import torch
import transformers
from helpers import ROOT, project

from attune.config.params import load
from attune.models.loading import add_adapter
from attune.models.tiny import configuration, from_config
from attune.runtime.errors import ModelError, ParamsError, UserError
from attune.runtime.io import read_yaml
from attune.tools.memory import estimate, fits
from attune.tools.memory.footprint import kept
from attune.tools.memory.sizes import of_rank, size
from attune.tools.memory.work import EXAMPLES, work
from attune.training.common.collate import IGNORED, pad_supervised
from attune.training.common.packed_forward import prepare, unwrap_peft
from attune.training.common.trainer import common_arguments
from attune.training.dpo.reference_logps import complete, with_reference
from attune.training.dpo.trainer import make_trainer
from attune.training.sft.trainer import supervised_trainer

MICRO, LENGTH = 2, 96
# Width, feed-forward width, layers, heads and vocabulary.
MODELS = {
    "tiny": (64, 176, 4, 4, 1024),
    "15M": (384, 1024, 7, 6, 8192),
    "30M": (512, 1408, 8, 8, 8192),
}
WITHIN = 0.15


def params_of(name, architecture="llama", dtype="fp32", checkpointing=False):
    params = load(ROOT / "params.yaml")
    width, inner, layers, heads, words = MODELS[name]
    shape = {"hidden_size": width, "intermediate_size": inner, "layers": layers, "heads": heads, "vocab_size": words}
    small = {"batch_size": MICRO, "max_length": LENGTH}
    hardware = {"micro_batch_size": MICRO, "dtype": dtype, "threads": 1, "gradient_checkpointing": checkpointing}
    return replace(
        params.with_hardware(replace(params.hardware, **hardware)),
        tiny=replace(params.tiny, architecture=architecture, **shape),
        lora=replace(params.lora, r=8),
        sft=replace(params.sft, epochs=1, **small),
        dpo=replace(params.dpo, epochs=1, **small),
    )


def trainer_of(step, params, tokenizer, folder):
    """This project's trainer of a step, on examples of the estimated lengths."""
    model = from_config(configuration(params.tiny, params.tiny.vocab_size))
    policy = add_adapter(model, params.lora, 1)
    half, hardware = LENGTH // 2, params.hardware
    if step == "sft":
        some = [{"input_ids": [5 + i] * LENGTH, "labels": [IGNORED] * half + [5 + i] * half} for i in range(MICRO)]
        arguments = common_arguments(params.sft, hardware, 1, folder)
        return supervised_trainer(
            policy,
            hardware,
            args=transformers.TrainingArguments(**arguments),
            train_dataset=some,
            data_collator=partial(pad_supervised, pad_id=0),
        )
    pairs = [{"prompt_ids": [5 + i] * half, "chosen_ids": [6] * half, "rejected_ids": [7] * half} for i in range(MICRO)]
    prepare(policy, hardware, LENGTH)
    logps = complete(policy, pairs, folder / "logps.parquet", None, "reference", hardware, 0)
    return make_trainer(policy, tokenizer, with_reference(pairs, logps), params.dpo, hardware, 1, folder)


def measured(trainer):
    """Bytes of a step: kept for the backward pass, by storage; weights; gradients; the optimizer's state."""
    model, found, alive = trainer.model, {}, []
    weights = {one.untyped_storage().data_ptr() for one in [*model.parameters(), *model.buffers()]}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    whole = trainer.compute_loss

    def forward(*args, **kwargs):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            return whole(*args, **kwargs)

    trainer.compute_loss = forward
    gradients = []
    trainer.add_callback(at_optimizer(lambda: gradients.append(of(p.grad for p in model.parameters()))))
    trainer.train()
    state = of(one for held in trainer.optimizer.state.values() for one in held.values())
    return {
        "kept": sum(found.values()),
        "gradients": gradients[0],
        "optimizer": state,
        "weights": of(model.parameters()),
    }


def of(tensors):
    return sum(one.numel() * one.element_size() for one in tensors if isinstance(one, torch.Tensor))


def at_optimizer(work):
    class AtOptimizer(transformers.TrainerCallback):
        def on_pre_optimizer_step(self, *args, **kwargs):
            work()

    return AtOptimizer()


CASES = [
    ("tiny", "llama", "fp32", False),
    ("tiny", "llama", "fp32", True),
    ("tiny", "gemma", "fp32", False),
    ("tiny", "bert", "fp32", False),
    ("tiny", "llama", "bf16", False),
    ("15M", "llama", "fp32", False),
    ("30M", "llama", "fp32", False),
]


@pytest.mark.parametrize("step", ["sft", "dpo"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_estimate_is_what_a_training_step_keeps(step, case, tiny_tokenizer, tmp_path):
    params = params_of(*case)
    checkpointing = params.hardware.gradient_checkpointing
    config = configuration(params.tiny, params.tiny.vocab_size)
    whole, estimated = size(config, params), kept(config, params, step, checkpointing, MICRO)
    step_took = measured(trainer_of(step, params, tiny_tokenizer, tmp_path))
    assert whole.gradients == step_took["gradients"]
    assert whole.optimizer == pytest.approx(step_took["optimizer"], rel=0.01)  # the number of its steps is a tensor
    assert whole.weights + whole.adapter == step_took["weights"]
    assert estimated.saved == pytest.approx(step_took["kept"], rel=WITHIN)
    assert whole.fixed + estimated.saved == pytest.approx(sum(step_took.values()), rel=WITHIN)
    assert estimated.passing > 0 and (estimated.again > 0) is checkpointing


def test_checkpointing_keeps_layer_inputs_and_recomputes_one_layer():
    params, config = params_of("tiny"), MISTRAL
    plain, less = (kept(config, params, "sft", checkpointing, MICRO) for checkpointing in (False, True))
    assert less.activations < plain.activations / 10
    assert less.again * config.num_hidden_layers == pytest.approx(plain.activations, rel=0.05)
    assert less.logits == plain.logits


# transformers' defaults are the shape of Mistral 7B.
MISTRAL = transformers.MistralConfig()


def test_the_sizes_of_mistral_7b_are_the_published_ones():
    """7,241,732,096 parameters; an adapter of rank 16 on all linear layers has 41,943,040."""
    params = load(ROOT / "params.yaml")
    params = replace(params, lora=replace(params.lora, r=16))
    params = params.with_hardware(replace(params.hardware, device="cuda"))
    found = size(MISTRAL, params)
    assert (found.parameters, found.lora) == (7_241_732_096, 41_943_040)
    # bf16 weights; the adapter and its gradients in fp32, and two moments.
    assert (found.weights, found.adapter) == (2 * found.parameters, 4 * found.lora)
    assert found.fixed == found.weights + 16 * found.lora


@pytest.mark.parametrize(
    ("hub_id", "published"),
    [
        ("alignment-handbook/zephyr-7b-sft-full", 7_241_732_096),
        ("mistralai/Mistral-7B-Instruct-v0.1", 7_241_732_096),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8_030_261_248),
        ("google/gemma-7b-it", 8_537_680_896),
    ],
)
def test_the_shapes_of_the_papers_models_have_the_published_parameters(hub_id, published):
    shapes = json.loads(estimate.SHAPES.read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = from_config(transformers.AutoConfig.for_model(**shapes[hub_id]))
    assert sum(weight.numel() for weight in model.parameters()) == published


def test_every_hub_model_of_conf_has_a_shape_so_that_the_planner_needs_no_network():
    models = [read_yaml(path, UserError, "")["model"] for path in (ROOT / "conf/model").glob("*.yaml")]
    named = {model["hub_id"] for model in models if model.get("source") == "hub"}
    assert named == json.loads(estimate.SHAPES.read_text(encoding="utf-8")).keys()


def on_gpus(params, ranks=1, accelerate=None):
    more = {"device": "cuda", "dtype": "bf16", "processes": ranks, "accelerate": accelerate}
    return params.with_hardware(replace(params.hardware, **more))


def test_a_rank_has_all_with_ddp_and_its_part_with_fsdp():
    params, config = params_of("tiny"), MISTRAL
    params = replace(params, lora=replace(params.lora, r=16))
    ddp, fsdp = (on_gpus(params, 4, f"conf/accelerate/{name}.yaml") for name in ("ddp", "fsdp"))
    whole = size(config, ddp)
    assert of_rank(whole, config, ddp.hardware) == whole and whole.fixed == 2 * whole.parameters + 16 * whole.lora
    part = of_rank(whole, config, fsdp.hardware)
    assert part.fixed - part.gathered == whole.fixed // 4
    # Two of 32 layers and one of two matrices of the vocabulary, in bf16, and a layer's gradients.
    words = 32000 * 4096
    layer = (whole.parameters - 2 * words + whole.lora) / 32
    assert part.gathered == pytest.approx(2 * (2 * layer + words) + 6 * whole.lora / 32, rel=1e-6)


def needs(config, params, micro=1):
    """Bytes of a GPU on which a step of either kind just fits."""
    checkpointing = params.hardware.gradient_checkpointing
    took = max(kept(config, params, step, checkpointing, micro).total for step in fits.STEPS)
    return -(-(size(config, params).fixed + took) * 10 // 9)


def test_where_nothing_fits_changes_that_do_are_found():
    params, config = on_gpus(params_of("tiny", checkpointing=True)), configuration(params_of("tiny").tiny, 1024)
    params = replace(params, lora=replace(params.lora, r=16))
    whole, enough = size(config, params), needs(config, params)
    assert fits.does_fit(config, params, enough)
    # A little less than with 8-bit moments: the lower rank fits, alone.
    short = enough - 10 * (whole.optimizer * 3 // 4) // 9 - 2**10
    found = fits.proposals(config, params, short)
    assert ["lora.r=8"] in found and ["training.optimizer=paged_adamw_8bit"] not in found
    assert all(fits.does_fit(config, fits.changed(params, overrides), short) for overrides in found)
    assert not any(set(one) < set(other) for one in found for other in found)


def test_several_ranks_cannot_halve_their_micro_batches():
    params, config = on_gpus(params_of("tiny", checkpointing=True), 2), configuration(params_of("tiny").tiny, 1024)
    params = params.with_hardware(replace(params.hardware, micro_batch_size=4))
    params = replace(params, sft=replace(params.sft, batch_size=8), dpo=replace(params.dpo, batch_size=8))
    memory = needs(config, params)
    assert not fits.does_fit(config, params, memory)
    assert fits.proposals(config, params, memory) == [["training.micro_batch_size=1"]]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_products_of_a_step_are_those_that_torch_counts(checkpointing):
    from torch.utils.flop_counter import FlopCounterMode

    params = params_of("15M", checkpointing=checkpointing)
    config = configuration(params.tiny, params.tiny.vocab_size)
    policy = add_adapter(from_config(config), params.lora, 1)
    if checkpointing:
        policy.enable_input_require_grads()
        unwrap_peft(policy).activation_checkpointing_enable({"use_reentrant": False})
    half = LENGTH // 2

    def step(tokens, positions, train):
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(train):
            logits = policy(torch.full((1, tokens), 5), logits_to_keep=positions).logits
            if train:
                logits.sum().backward()
        return counter.get_total_flops()

    estimated = work(config, params, size(config, params))
    assert estimated.sft / EXAMPLES == pytest.approx(step(LENGTH, half, True), rel=0.05)
    pair = step(3 * half, 2 * half, True) + step(3 * half, 2 * half, False)
    assert estimated.dpo / EXAMPLES == pytest.approx(pair, rel=0.05)
    assert estimated.hours(1e12) == pytest.approx((estimated.sft / 3.6e15, estimated.dpo / 3.6e15))


def test_the_micro_batch_that_fits_is_the_largest_that_does():
    params, config = params_of("tiny"), configuration(params_of("tiny").tiny, 1024)
    params = replace(params, dpo=replace(params.dpo, batch_size=12))
    one, two, three = (kept(config, params, "dpo", False, n) for n in (1, 2, 3))
    assert estimate.scaled(one, two, 3).total == pytest.approx(three.total, rel=0.001)
    fits = partial(estimate.fitting, one, two, 12)
    assert (fits(three.total * 1.001), fits(three.total * 0.999)) == (3, 2)
    assert (fits(one.total * 0.99), fits(1e12)) == (0, 12)


@pytest.fixture
def root(tmp_path, monkeypatch):
    project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys, *words):
    estimate.main(words)
    return capsys.readouterr().out


def test_the_page_of_a_hub_model_needs_its_configuration_alone(root, capsys):
    MISTRAL.save_pretrained(root / "mistral")
    words = ("model=mistral-7b", "recipe=empo", "hardware=gpu", "lora.r=16", "--config", str(root / "mistral"))
    page = run(capsys, *words, "--memory", "24")
    assert page.startswith("mistral-7b: 7,241,732,096 parameters, LoRA of rank 16 41,943,040\ncuda, bf16; ")
    rows = {cells[1]: cells[2:6] for line in page.splitlines() if len(cells := re.split(r"\s*\|\s*", line)) > 5}
    assert rows["weights"] == ["13.49"] * 4 and rows["reference"] == ["in a file"] * 4
    assert rows["optimizer state"] == ["0.31"] * 4
    fits = [int(one.replace("none", "0")) for one in rows["micro-batch that fits"]]
    assert fits[0] < fits[1] and fits[2] < fits[3] and "not measured on a GPU" in page
    assert not (root / "params.yaml").exists()


def test_the_page_of_a_model_that_is_made_has_the_shape_of_the_params_and_the_status_tells_whether_it_fits(
    root, capsys
):
    with pytest.raises(SystemExit) as ended:
        run(capsys, "model=tiny", "tiny.layers=2", "tiny.vocab_size=300", "lora.r=4", "--memory", "0.001")
    page = capsys.readouterr().out
    assert page.startswith("tiny: ") and "in a file" in page and "of a GPU" not in page
    assert re.search(r"Disk, in GB: base model \d+, a checkpoint \d+, .* where it copies them", page)
    assert page.endswith("\nDoes not fit. Nothing that was tried does.\n") and ended.value.code == 1


def test_dpo_in_padded_batches_has_no_estimate():
    params = params_of("tiny")
    config = transformers.PhiConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    page = estimate.page(config, params, None)
    assert "| dpo" not in page and "DPO of phi runs in TRL's padded batches: no estimate." in page


def test_errors_are_for_people(root, capsys):
    with pytest.raises(ModelError, match=r"the configuration of owner/name cannot be loaded.*--config FOLDER"):
        run(capsys, "model=mistral-7b", "hardware=gpu", "model.hub_id=owner/name")
    with pytest.raises(ModelError, match=r"holds no config\.json: set --config to"):
        run(capsys, "model=mistral-7b", "--config", str(root))
    (root / "config.json").write_text(json.dumps({"model_type": "of_tomorrow"}))
    with pytest.raises(ModelError, match=r"the configuration of .* cannot be loaded"):
        run(capsys, "model=mistral-7b", "--config", str(root))
    with pytest.raises(ParamsError, match=r"lora\.r = 0"):
        run(capsys, "lora.r=0")
