"""Publish a variant or pairs with a card on the Hugging Face Hub; nothing else in the project uploads anything.

    python -m attune push sft-dpo somebody/attune-sft-dpo
    python -m attune push sft-dpo somebody/attune-sft-dpo --public
    python -m attune push e1 somebody/attune-pairs --pairs

uploads the files that `reports/cards/<variant>.md` lists (safetensors, configurations, the tokenizer) and the card as
README.md, in one commit, to a private repository unless `--public` is given. With `--pairs` it uploads the preference
pairs of a round, as `python -m attune export pairs` writes them, and a card that states their licences, as a data set.
The token is that of `hf auth login` or of HF_TOKEN; only the Hub's client gets it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attune.config.params import load, with_model
from attune.config.schema import Params
from attune.report.card_facts import CARDS, METADATA, published
from attune.runtime.cli import command_parser
from attune.runtime.errors import UserError
from attune.tools.export import pair_lines
from attune.tools.pairs_card import PAIRS_FILE, make_card
from attune.tools.variant_card import read_card


def checked_card(variant: str, model: Path, public: bool) -> Path:
    """The card of the files that are in `model` now.

    Raises:
        UserError: as `read_card`, there is nothing to publish, or a licence forbids a public model.
    """
    path = CARDS / f"{variant}.md"
    facts = read_card(variant, model).data[METADATA]
    if not facts["files"]:
        raise UserError(f"{variant} is the unchanged base model of the hub: there is nothing to publish")
    if public and facts.get("public") is not True:
        raise UserError(f"{path} lists a licence under which the model must not be public: push it without --public")
    return path


def push(variant: str, params: Params, repo_id: str, public: bool) -> str:
    """Upload a variant and its card.

    Returns:
        The address of the commit.

    Raises:
        UserError: as `checked_card` and `upload`.
    """
    model = Path(with_model(params, variant).model)
    card = checked_card(variant, model, public)
    return upload(repo_id, "model", published(model) | {"README.md": card}, public, f"Attune, variant {variant}")


def push_pairs(key: str, params: Params, repo_id: str, public: bool) -> str:
    """Upload the preference pairs of a round and their card, as a data set.

    Returns:
        The address of the commit.

    Raises:
        UserError: as `pair_lines` and `upload`, or a licence forbids a public data set.
    """
    lines = list(pair_lines(params, [key]))
    card = make_card(key, params, len(lines))
    if public and not card.public:
        raise UserError(f"the pairs of {key} have a licence under which they must not be public: push without --public")
    files: dict[str, Path | bytes] = {PAIRS_FILE: "".join(lines).encode(), "README.md": card.text.encode()}
    return upload(repo_id, "dataset", files, public, f"Attune, pairs of round {key}")


def upload(repo_id: str, kind: str, files: Mapping[str, Path | bytes], public: bool, message: str) -> str:
    """Commit files to a repository of the hub, which is created if it does not exist.

    Args:
        repo_id: owner/name.
        kind: model or dataset.
        files: name on the hub to a file or its content.
        public: whether a new repository is public, and an existing one may be.
        message: of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: no token, a public repository without `public`, or an error of the Hub.
    """
    from httpx2 import TransportError
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if get_token() is None:
        raise UserError("nobody is logged in to the hub: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type=kind, private=not public, exist_ok=True)
        if not public and not api.repo_info(repo_id, repo_type=kind).private:
            raise UserError(f"{repo_id} exists and is public: choose another name, or add --public")
        added = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()]
        done = api.create_commit(repo_id, added, repo_type=kind, commit_message=message)
    # Without a network httpx2 raises an error of its own class, which is no OSError.
    except (HfHubHTTPError, HFValidationError, TransportError, OSError) as error:
        raise UserError(f"{repo_id}: nothing was published: {error}") from None
    return done.commit_url


def main(argv: Sequence[str]) -> None:
    """Publish, and print the address of the commit."""
    parser = command_parser("push", __doc__)
    parser.add_argument("name", help="a key of variants; with --pairs a key of rounds")
    parser.add_argument("repo_id", help="owner/name on the hub; created if it does not exist")
    parser.add_argument("--public", action="store_true", help="make the repository public; default: private")
    parser.add_argument("--pairs", action="store_true", help="publish the preference pairs of a round")
    arguments = parser.parse_args(argv)
    publish = push_pairs if arguments.pairs else push
    print(publish(arguments.name, load(), arguments.repo_id, arguments.public))
