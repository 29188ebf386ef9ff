"""Publish a variant on the Hugging Face hub, with its card; nothing does so unless it is called.

    python -m attune push sft-dpo somebody/attune-sft-dpo
    python -m attune push sft-dpo somebody/attune-sft-dpo --public

uploads the files that `reports/cards/<variant>.md` lists (safetensors, configurations, the tokenizer) and the card as
README.md, in one commit, to a private repository unless told otherwise. The token is that of `hf auth login` or of
HF_TOKEN; it is handed to the hub's client and to nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attune.config.params import load, named
from attune.config.schema import Params
from attune.report.card_facts import CARDS, METADATA, hashes, published
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError


def checked_card(variant: str, model: Path, public: bool) -> Path:
    """The card of the files that are in `model` now.

    Raises:
        UserError: there is none, it is another variant's, or it describes other files.
        UserError: there is nothing to publish, or not to everybody.
    """
    from huggingface_hub import ModelCard

    path = CARDS / f"{variant}.md"
    again = f"run `dvc repro card@{variant}`"
    if not path.is_file():
        raise UserError(f"{path} is missing, and no model is published without its card: {again}")
    own: dict[str, Any] = ModelCard.load(path).data.get(METADATA) or {}
    if own.get("variant") != variant:
        raise UserError(f"{path} is the card of {own.get('variant')!r}, not of {variant!r}: {again}")
    if own["files"] != (there := hashes(model)):
        other = sorted(name for name in own["files"].keys() | there if own["files"].get(name) != there.get(name))
        raise UserError(f"{path} does not belong to what is in {model}; these differ: {', '.join(other)}. {again}")
    if not there:
        raise UserError(f"{variant} is the base model as the hub has it: there is nothing to publish")
    if public and own.get("public") is not True:
        raise UserError(
            f"{path} lists a licence under which the model must not be shown to everybody: push it without --public"
        )
    return path


def push(variant: str, params: Params, repo_id: str, public: bool) -> str:
    """Upload a variant and its card.

    Returns:
        The address of the commit.

    Raises:
        UserError, UserError: as `checked_card`; nobody is logged in, the repository is public and should not be, or the
            hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    model = Path(named(params.variants, variant, "variants").model)
    card = checked_card(variant, model, public)
    if get_token() is None:
        raise UserError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN")
    files = published(model) | {"README.md": card}
    api = HfApi()
    try:
        api.create_repo(repo_id, private=not public, exist_ok=True)
        if not public and not api.model_info(repo_id).private:
            raise UserError(f"{repo_id} is there and public: take another name, or say --public")
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        done = api.create_commit(repo_id, added, commit_message=f"Attune, variant {variant}")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"{repo_id}: the hub took nothing: {error}") from None
    return done.commit_url


def main(argv: Sequence[str]) -> None:
    """Publish, and print the address of the commit."""
    parser = command_parser("push", __doc__)
    parser.add_argument("variant", help="a key of variants")
    parser.add_argument("repo_id", help="owner/name on the hub; created if it does not exist")
    parser.add_argument("--public", action="store_true", help="show it to everybody; default: private")
    arguments = parser.parse_args(argv)
    print(push(arguments.variant, load(), arguments.repo_id, arguments.public))
