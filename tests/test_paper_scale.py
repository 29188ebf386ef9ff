"""The papers' models: how they are scored, and what a study says below a paper's rows."""

import pytest
from helpers import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from attune.config.params import check
from attune.config.schema import bertscore_encoder
from attune.tools.study_results import beside_paper


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base=None):
        return OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True)


@pytest.mark.parametrize("model", ["zephyr-7b", "mistral-7b", "llama-3-8b", "gemma-7b", "biobert"])
@pytest.mark.parametrize("recipe", ["empo", "dbt", "counsel"])
def test_the_papers_models_are_scored_as_published(recipe, model):
    params = check(composed(f"recipe={recipe}", "hardware=gpu", f"model={model}"), "conf")
    assert (params.encoder.name, params.encoder.source) == ("roberta-base", "hub")
    assert (bertscore_encoder(params).name, params.bertscore.layer) == ("FacebookAI/roberta-large", 17)
    epitome = params.epitome
    assert (epitome.data, epitome.published) == ("data/raw/epitome", None)
    assert (epitome.learning_rate, epitome.head_learning_rate) == (2e-5, 2e-5)
    assert (epitome.epochs, epitome.batch_size, epitome.dropout, epitome.frozen_layers) == (4, 32, 0.1, 0)
    assert epitome.lambda_level == epitome.lambda_rationale


def test_what_stands_below_a_papers_rows_names_model_encoders_and_lengths():
    metrics = ["mmlu", "diff_er", "bertscore_f1"]
    paper = [composed("recipe=empo", "hardware=gpu", f"seed={seed}") for seed in (13, 14)]
    text = beside_paper("empo-table1", paper, metrics)
    assert "of the same models, trained and scored here" in text
    assert "diff-EPITOME is by classifiers trained here on data/raw/epitome, with roberta-base" in text
    assert "F-BERT is by FacebookAI/roberta-large, layer 17" in text
    assert "replies have at most 64 tokens; weights are in bf16" in text
    own = [composed("recipe=empo", "hardware=gpu", "epitome.checkpoints=my/folder", "model.quantization=nf4")]
    text = beside_paper("empo-table1", own, ["diff_er"])
    assert "the authors' checkpoints" in text and "in nf4" in text and "F-BERT" not in text
    small = beside_paper("empo-table1", [*paper, composed("recipe=empo", "model=smollm2")], metrics)
    assert "those below of smollm2: no number of one compares" in small and "roberta" not in small
