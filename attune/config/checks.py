"""Conditions that join keys of `params.yaml`: what no type of one key can say."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from attune.config.loss_checks import check_loss
from attune.config.schema import (
    COLUMN_READERS,
    DBT,
    DIALOGUES,
    EMBEDDED_HEALTH,
    EPITOME,
    FILE_READERS,
    LOGGING_STEPS,
    NO_LOCAL_DIR,
    PAIR_FILES,
    Corpus,
    Hardware,
    Pairs,
    Params,
    chain,
)
from attune.config.weight_checks import check_model_keys, check_weights
from attune.runtime.errors import ParamsError


def check_across_keys(params: Params, source: str) -> None:
    """Check what joins keys.

    Args:
        params: of which each key by itself is right.
        source: where they came from, for the errors.

    Raises:
        ParamsError: two keys do not go together; names both.
    """
    _check_corpus(params.corpus, source)
    _check_rounds(params, source)
    _check_pair_file(params.pairs, source)
    _check_training(params, source)
    _check_generation(params, source)
    if params.evaluate.reference not in params.variants:
        raise ParamsError(
            f"{source}: evaluate.reference = {params.evaluate.reference!r} is none of the variants: "
            f"{', '.join(params.variants)}"
        )
    _check_variants(params, source)
    _check_probed(params, source)
    _check_whole_modules(params, source)
    _check_scorers(params, source)
    _check_adapters(params, source)
    if params.bertscore.hub_id is not None and not params.bertscore.revision:
        raise ParamsError(f"{source}: bertscore.revision is missing for bertscore.hub_id = {params.bertscore.hub_id!r}")
    check_weights(params.encoder, "encoder", source)
    check_weights(params.model, "model", source)
    check_model_keys(params.model, source)


def _check_training(params: Params, source: str) -> None:
    """Batches, loss, ranks, checkpoints, and the shape of a model that is made."""
    for stage in ("sft", "dpo"):
        batch = getattr(params, stage).batch_size
        if batch % min(batch, params.hardware.micro_batch_size):
            raise ParamsError(
                f"{source}: {stage}.batch_size = {batch} is no multiple of training.micro_batch_size = "
                f"{params.hardware.micro_batch_size}"
            )
    check_loss(params.dpo, params.hardware, source)
    _check_processes(params.hardware, source)
    if params.model.quantization is not None and params.hardware.shards:
        raise ParamsError(
            f"{source}: model.quantization = {params.model.quantization!r} with ranks.accelerate = "
            f"{params.hardware.accelerate!r}: FSDP leaves 4-bit weights whole on every GPU; set "
            "ranks.accelerate=conf/accelerate/ddp.yaml"
        )
    if params.hardware.save_every % LOGGING_STEPS:
        # The mean since the last point is not part of a checkpoint: off this grid a resumed run has another curve.
        raise ParamsError(
            f"{source}: runtime.save_every = {params.hardware.save_every} is no multiple of {LOGGING_STEPS}, the "
            "steps between two points of a training curve"
        )
    if params.tiny.hidden_size % params.tiny.heads:
        raise ParamsError(
            f"{source}: tiny.hidden_size = {params.tiny.hidden_size} is no multiple of tiny.heads = {params.tiny.heads}"
        )


def _check_generation(params: Params, source: str) -> None:
    """The room for a prompt, and what vLLM knows."""
    if params.generate.max_new_tokens >= params.generate.max_length:
        raise ParamsError(
            f"{source}: generate.max_new_tokens = {params.generate.max_new_tokens} leaves no room for a prompt "
            f"within generate.max_length = {params.generate.max_length}"
        )
    if params.generate.engine == "vllm" and _is_bert(params):
        raise ParamsError(
            f"{source}: generate.engine = 'vllm' does not know BERT as a decoder, a class of this project: set "
            "generate.engine = builtin"
        )


def _check_whole_modules(params: Params, source: str) -> None:
    """vLLM serves adapters alone, and FSDP adds up no gradients of a head that the packed forward pass reads itself."""
    if not params.lora.modules_to_save:
        return
    named = f"{source}: lora.modules_to_save = {params.lora.modules_to_save}"
    if params.generate.engine == "vllm":
        raise ParamsError(f"{named}: vLLM serves adapters alone: set generate.engine = builtin")
    if params.hardware.shards:
        raise ParamsError(
            f"{named}: FSDP does not train whole modules here: set ranks.accelerate=conf/accelerate/ddp.yaml"
        )


def _check_variants(params: Params, source: str) -> None:
    if all(variant.replies_file for variant in params.variants.values()):
        raise ParamsError(f"{source}: variants has files of replies alone: `python -m attune score` scores them")
    for name, variant in params.variants.items():
        if variant.replies_file and variant.instruction_file:
            raise ParamsError(
                f"{source}: variants.{name}.instruction = {variant.instruction!r}: replies that were made elsewhere "
                f"take none: {DIALOGUES}"
            )
        length = variant.max_new_tokens
        if length and (variant.replies_file or length >= params.generate.max_length):
            raise ParamsError(
                f"{source}: variants.{name}.max_new_tokens = {length}: replies that were made elsewhere have their "
                f"length, and others leave room for a prompt within generate.max_length = {params.generate.max_length}"
            )


def _check_probed(params: Params, source: str) -> None:
    """`probed` and `judged` repeat variants for DVC; the probes also compare with the reference variant."""
    for key, chosen in (("probed", params.probed), ("judged", params.judged)):
        for name, variant in chosen.items():
            if params.variants.get(name) != variant:
                raise ParamsError(f"{source}: {key}.{name} is not variants.{name}: set {key}='${{variants}}' for all")
    if params.probed and params.evaluate.reference not in params.probed:
        raise ParamsError(
            f"{source}: probed lacks evaluate.reference = {params.evaluate.reference!r}, the variant of comparisons"
        )
    lacking = [name for name in params.truth.medical if name not in EMBEDDED_HEALTH]
    if params.probed and params.mmlu.corpus == "sample" and lacking:
        raise ParamsError(
            f"{source}: truth.medical names {', '.join(lacking)}, but mmlu.corpus = 'sample' has "
            f"{', '.join(EMBEDDED_HEALTH)} alone of MMLU's subjects on health: set mmlu.corpus = mmlu"
        )


def _check_processes(hardware: Hardware, source: str) -> None:
    if (hardware.nodes > 1) is not (hardware.rendezvous is not None):
        raise ParamsError(
            f"{source}: runtime.rendezvous = {hardware.rendezvous!r} with ranks.nodes = {hardware.nodes}: several "
            "machines meet at host:port of the first, one needs none (null)"
        )
    if hardware.accelerate is not None and hardware.device == "cpu":
        raise ParamsError(f"{source}: ranks.accelerate = {hardware.accelerate!r} is for GPUs: null on a CPU")


def _is_bert(params: Params) -> bool:
    return params.model.as_decoder or (params.model.source == "made" and params.tiny.architecture == "bert")


def _check_corpus(corpus: Corpus, source: str) -> None:
    """One corpus or a mixture, and file and columns only where the reader knows them."""
    if (corpus.reader is None) is not bool(corpus.mix):
        raise ParamsError(
            f"{source}: corpus.reader = {corpus.reader!r} with {len(corpus.mix)} corpora in corpus.mix: a mixture "
            "names the readers of its corpora and has none itself"
        )
    if corpus.mix and (corpus.file or corpus.columns):
        raise ParamsError(f"{source}: corpus.file and corpus.columns must be null in a mixture, whose corpora have own")
    _check_messages(corpus, source)
    for name, part in corpus.parts.items():
        where = f"{source}: corpus.mix.{name}" if corpus.mix else f"{source}: corpus"
        if part.file and part.reader not in FILE_READERS:
            raise ParamsError(f"{where}.file = {part.file!r}: reader {part.reader} reads files of fixed names")
        if part.columns and part.reader not in COLUMN_READERS:
            raise ParamsError(f"{where}.columns: reader {part.reader} reads columns of fixed names")


def _check_messages(corpus: Corpus, source: str) -> None:
    """A data set of the hub is read by reader messages alone, and the shares of splits are percentages of a whole."""
    messages, shares = corpus.messages, corpus.messages.shares
    if messages.hub_id and (corpus.reader != "messages" or corpus.local_folder or corpus.file):
        raise ParamsError(
            f"{source}: corpus.messages.hub_id = {messages.hub_id!r} is for corpus.reader = messages, without "
            f"corpus.file and with corpus.local_dir = {NO_LOCAL_DIR} (none): -S corpus=messages_hub"
        )
    if (total := sum(vars(shares).values())) != 100:
        raise ParamsError(f"{source}: corpus.messages.shares add up to {total} percent, and not to 100")


def _check_rounds(params: Params, source: str) -> None:
    """Each chain of rounds fits the schedule, and each round's candidates and scorer fit the rule."""
    for key, dpo_round in params.rounds.items():
        where = f"{source}: rounds.{key}"
        length = len(chain(params.rounds, key))
        if length > params.dpo.epochs:
            raise ParamsError(
                f"{where} is round {length} of its chain, but the learning-rate schedule ends after dpo.epochs = "
                f"{params.dpo.epochs}: raise dpo.epochs (which re-runs every round) or drop a round"
            )
        # Of the chain's first round, whose pairs the later ones repeat.
        first = params.rounds[chain(params.rounds, key)[0]]
        start = dpo_round if params.pairs.fresh else first
        if not params.pairs.fresh and (dpo_round.candidates, dpo_round.scorer) != (first.candidates, first.scorer):
            raise ParamsError(
                f"{where} has the candidates {dpo_round.candidates!r} and the scorer {dpo_round.scorer!r}, but with "
                f"pairs.fresh = false they are those of the first round, {first.candidates!r} and {first.scorer!r}"
            )
        if params.pairs.rule == "dbt":
            _check_choice(where, "candidates", dpo_round.candidates, (DIALOGUES, start.init, params.llm.prompt))
            _check_choice(where, "scorer", dpo_round.scorer, (DBT, params.llm.judge_prompt))
            if dpo_round.scorer == DBT and "dbt" not in params.classifiers:
                raise ParamsError(f"{where}.scorer = {DBT!r}, but classifiers has no dbt: compose with recipe=dbt")
        else:
            rule = f"pairs.rule = {params.pairs.rule!r}"
            candidates = start.init if params.pairs.on_policy_samples else DIALOGUES
            scorer = EPITOME if params.pairs.rule == "epitome" else DIALOGUES
            _check_choice(where, "candidates", dpo_round.candidates, (candidates,), rule)
            _check_choice(where, "scorer", dpo_round.scorer, (scorer,), rule)


def _check_pair_file(pairs: Pairs, source: str) -> None:
    """Rule file names a file of a known format, a folder, or a dataset of the hub at a commit."""
    if pairs.rule != "file":
        return
    if pairs.file.hub_id is None:
        # A folder has no ending.
        if Path(pairs.table).suffix not in ("", *PAIR_FILES):
            raise ParamsError(
                f"{source}: pairs.table = {pairs.table!r}, but pairs.rule = 'file' reads a .jsonl, .json or .parquet "
                "file, or a folder with a file train and perhaps a file test"
            )
    elif not re.fullmatch("[0-9a-f]{40}", pairs.file.revision or ""):
        raise ParamsError(
            f"{source}: pairs.file.revision = {pairs.file.revision!r}, but a branch or tag may move to other pairs: "
            f"name a commit, 40 hex digits, of https://huggingface.co/datasets/{pairs.file.hub_id}/commits/main"
        )


def _check_choice(where: str, name: str, value: str, choices: Sequence[str], rule: str = "pairs.rule = 'dbt'") -> None:
    if value not in choices:
        raise ParamsError(f"{where}.{name} = {value!r}, but {rule} takes {' or '.join(map(repr, choices))}")


def _check_scorers(params: Params, source: str) -> None:
    """`classifiers` and `scorers` repeat for DVC what the classifiers' sections say: they must not differ."""
    wanted = ["text", *params.classifiers, "mmlu"]
    if params.scorers != wanted:
        raise ParamsError(f"{source}: scorers = {params.scorers}, but with these classifiers it must be {wanted}")
    if "epitome" not in params.classifiers:
        raise ParamsError(f"{source}: classifiers has no epitome, which every variant is scored by")
    for name, classifier in params.classifiers.items():
        section = getattr(params, name)
        for key in ("data", "sentences", "table"):
            value, expected = getattr(classifier, key), getattr(section, key, section.data)
            if value != expected:
                raise ParamsError(
                    f"{source}: classifiers.{name}.{key} = {value!r}, but section {name} says {expected!r}: set "
                    f"{name}.{key if hasattr(section, key) else 'data'}, which it repeats"
                )


def _check_adapters(params: Params, source: str) -> None:
    if wrong := [name for name in params.adapters if name != "sft" and not name.startswith("sft-")]:
        raise ParamsError(f"{source}: adapters.{wrong[0]}: an adapter of SFT is named sft or sft-<name>")
