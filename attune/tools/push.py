"""Publish a variant with its model card on the Hugging Face Hub; nothing else in the project uploads anything.

    python -m attune push sft-dpo somebody/attune-sft-dpo
    python -m attune push sft-dpo somebody/attune-sft-dpo --public

uploads the files that `reports/cards/<variant>.md` lists (safetensors, configurations, the tokenizer) and the card as
README.md, in one commit, to a private repository unless `--public` is given. The token is that of `hf auth login` or of
HF_TOKEN; only the Hub's client gets it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attune.config.params import load, with_model
from attune.config.schema import Params
from attune.report.card_facts import CARDS, METADATA, hashes, published
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError


def checked_card(variant: str, model: Path, public: bool) -> Path:
    """The card of the files that are in `model` now.

    Raises:
        UserError: there is no card, it is another variant's or describes other files, there is nothing to publish, or a
            licence forbids a public model.
    """
    from huggingface_hub import ModelCard

    path = CARDS / f"{variant}.md"
    remedy = f"run `dvc repro card@{variant}`"
    if not path.is_file():
        raise UserError(f"{path} is missing, and no model is published without its card: {remedy}")
    facts: dict[str, Any] = ModelCard.load(path).data.get(METADATA) or {}
    if facts.get("variant") != variant:
        raise UserError(f"{path} is the card of {facts.get('variant')!r}, not of {variant!r}: {remedy}")
    if facts["files"] != (present := hashes(model)):
        different = sorted(
            name for name in facts["files"].keys() | present if facts["files"].get(name) != present.get(name)
        )
        raise UserError(
            f"{path} does not describe the files in {model}; these differ: {', '.join(different)}. {remedy}"
        )
    if not present:
        raise UserError(f"{variant} is the unchanged base model of the hub: there is nothing to publish")
    if public and facts.get("public") is not True:
        raise UserError(f"{path} lists a licence under which the model must not be public: push it without --public")
    return path


def push(variant: str, params: Params, repo_id: str, public: bool) -> str:
    """Upload a variant and its card.

    Returns:
        The address of the commit.

    Raises:
        UserError: as `checked_card`; no token, a public repository without `public`, or an error of the Hub.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    model = Path(with_model(params, variant).model)
    card = checked_card(variant, model, public)
    if get_token() is None:
        raise UserError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN")
    files = published(model) | {"README.md": card}
    api = HfApi()
    try:
        api.create_repo(repo_id, private=not public, exist_ok=True)
        if not public and not api.model_info(repo_id).private:
            raise UserError(f"{repo_id} exists and is public: choose another name, or add --public")
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        done = api.create_commit(repo_id, added, commit_message=f"Attune, variant {variant}")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repo_id}: the hub refused the upload: {error}") from None
    return done.commit_url


def main(argv: Sequence[str]) -> None:
    """Publish, and print the address of the commit."""
    parser = command_parser("push", __doc__)
    parser.add_argument("variant", help="a key of variants")
    parser.add_argument("repo_id", help="owner/name on the hub; created if it does not exist")
    parser.add_argument("--public", action="store_true", help="make the repository public; default: private")
    arguments = parser.parse_args(argv)
    print(push(arguments.variant, load(), arguments.repo_id, arguments.public))
