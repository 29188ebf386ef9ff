"""Data sets of the Hugging Face hub: files of a commit in the hub's cache, read by the package datasets.

No code of a repository is run: datasets 5 has no loading scripts. With HF_HUB_OFFLINE=1 the cache alone is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from attune.runtime.errors import UserError, reason

# What says which files a configuration has; the second one overrides the first.
CARD, OWN_YAML = "README.md", ".huggingface.yaml"
# The files that are taken where the card names none: no code, no pickle.
FILES = ["*.json", "*.jsonl", "*.parquet", "*.csv", "*.arrow", "*.json.gz", "*.jsonl.gz", "*.csv.gz"]


def load_splits(
    hub_id: str, subset: str | None, revision: str, section: str, needed: Sequence[str], error: type[UserError]
) -> tuple[str, dict[str, Any]]:
    """Load a data set, from the hub's cache or through it.

    Args:
        hub_id: its name.
        subset: its configuration; None: the only one, or its default.
        revision: branch, tag or commit.
        section: of the params that say so, for errors.
        needed: splits that must be there.
        error: the class to raise.

    Returns:
        The commit, and the splits by name, with names instead of the numbers of classes.

    Raises:
        UserError: `error`: there is no such data set, configuration or split, the hub cannot be reached, the cache is
            incomplete, or the card names files outside of the data set, which are not read.
    """
    from datasets import load_dataset
    from datasets.data_files import sanitize_patterns
    from datasets.exceptions import DatasetGenerationError, DatasetsError
    from datasets.utils import disable_progress_bars
    from yaml import YAMLError

    what = f"{section}.hub_id = {hub_id!r} at revision {revision!r}"
    # TypeError: a card of another shape.
    known = (DatasetsError, DatasetGenerationError, YAMLError, TypeError)
    with hub_errors(what, error, f"{section}.hub_id = null local files", *known):
        commit = commit_of(hub_id, revision, "dataset")
        configurations = _configurations(_snapshot(hub_id, commit, [CARD, OWN_YAML]), error)
        subset = subset or configurations.get_default_config_name()
        if configurations and subset not in configurations:
            raise error(f"{what} has the configurations {', '.join(configurations)}: name one as {section}.subset")
        named = configurations.get(subset, {}).get("data_files")
        files = sanitize_patterns(named) if named else None
        folder = _snapshot(hub_id, commit, _patterns(files) if files else FILES)
        # datasets wants the files of the first configuration, unless it is told which to read.
        told = None if subset == next(iter(configurations), None) else files
        disable_progress_bars()
        splits: dict[str, Any] = dict(load_dataset(str(folder), subset, data_files=told))
    if missing := [name for name in needed if name not in splits]:
        raise error(f"{what} has no split {', '.join(missing)}: it has {', '.join(splits)}")
    return commit, {name: _with_names(split) for name, split in splits.items()}


def commit_of(hub_id: str, revision: str, kind: str) -> str:
    """The commit that a revision of a model or dataset is; that of the cache where the hub is not reached."""
    from huggingface_hub import HfApi

    return str(HfApi().resolve_revision(hub_id, repo_type=kind, revision=revision).resolved)


def _snapshot(hub_id: str, commit: str, patterns: Sequence[str]) -> Path:
    """The folder of a commit in the hub's cache with all files that match; the hub is asked only where one lacks."""
    from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    of_hub: dict[str, Any] = {"repo_type": "dataset", "revision": commit}
    try:
        if not constants.HF_HUB_OFFLINE:
            # By the listing that a download has left, snapshot_download sees whether the cache is complete.
            get_cached_repo_tree(hub_id, **of_hub)
        folder = Path(snapshot_download(hub_id, **of_hub, allow_patterns=list(patterns), local_files_only=True))
        if missing := missing_shards(folder, patterns):
            raise LocalEntryNotFoundError(f"the hub's cache lacks {missing[0]}")
        return folder
    except (CachedRepoTreeNotFoundError, LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            raise
    # Fails at once without a network, where snapshot_download tries again for half a minute.
    HfApi().dataset_info(hub_id, revision=commit)
    return Path(snapshot_download(hub_id, **of_hub, allow_patterns=list(patterns)))


def missing_shards(folder: Path, patterns: Sequence[str]) -> list[str]:
    """The files that an interrupted download has left out, by names such as train-00001-of-00004.parquet."""
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*-of-*")))
    missing = []
    for name in (name for name in names if any(fnmatch(name, pattern) for pattern in patterns)):
        if match := re.fullmatch(r"(.+-)(\d+)(-of-)(\d+)(\D.*)", name):
            start, number, of, count, end = match.groups()
            shards = [f"{start}{i:0{len(number)}}{of}{count}{end}" for i in range(int(count))]
            missing += [shard for shard in shards if not (folder / shard).is_file()]
    return missing


def _configurations(folder: Path, error: type[UserError]) -> Any:
    """The configurations that the card names: `datasets.utils.metadata.MetadataConfigs`, a dictionary by name.

    Raises:
        UserError: `error`, for files outside of the folder, which would be read, or fetched from other servers.
    """
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    card, own = folder / CARD, folder / OWN_YAML
    data = DatasetCard.load(card, ignore_metadata_errors=True).data if card.is_file() else DatasetCardData()
    if own.is_file():
        data = DatasetCardData(**data.to_dict() | dict(yaml.safe_load(own.read_text(encoding="utf-8")) or {}))
    named = json.dumps(data.to_dict().get("configs"), default=str)
    if outside := re.search(r'"/[^"]*|[^"]*(\.\.|::|://)[^"]*', named):
        raise error(f"{card} names a file outside of the data set, {outside[0].strip(chr(34))[:60]!r}: not read")
    return MetadataConfigs.from_dataset_card_data(data)


def _patterns(files: dict[str, list[str]]) -> list[str]:
    """Patterns of datasets as those of the hub, whose `*` matches folders, too."""
    return [CARD, OWN_YAML, *(name.removeprefix("./").replace("**/", "*") for some in files.values() for name in some)]


def _with_names(split: Any) -> Any:
    """The split with names instead of the numbers of classes."""
    import datasets

    classes = {key: feature for key, feature in split.features.items() if isinstance(feature, datasets.ClassLabel)}
    for key, feature in classes.items():
        names = [feature.names[number] if number is not None and number >= 0 else None for number in split[key]]
        split = split.remove_columns(key).add_column(key, names)
    return split


@contextmanager
def hub_errors(what: str, error: type[UserError], local: str, *others: type[Exception]) -> Iterator[None]:
    """Within the block, errors of the hub become one sentence.

    huggingface_hub 2.4 raises its own, httpx2's where there is no network (no OSError), and ValueError for an id
    that is none.

    Args:
        what: is asked for.
        error: the class to raise.
        local: setting that needs no hub, and what it takes.
        others: further errors to take.
    """
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RevisionResolutionError

    kinds: tuple[type[BaseException], ...] = (
        HfHubHTTPError,
        RevisionResolutionError,
        httpx2.TransportError,
        OSError,
        ValueError,
        *others,
    )
    try:
        yield
    except kinds as problem:
        gated = next((one for one in (problem, problem.__cause__) if isinstance(one, GatedRepoError)), None)
        named = re.search(r"[\w.-]+/[\w.-]+", what)
        if gated and named:
            page = f"https://huggingface.co/{'datasets/' if '/datasets/' in str(gated) else ''}{named[0]}"
            raise error(
                f"{what} is gated: accept its terms at {page}, and export HF_TOKEN, a token of that account. Nodes "
                "without a network: download it where there is one, with HF_HOME on a disk that both have"
            ) from None
        raise error(
            f"{what} cannot be had: {reason(problem)}. Check the id, the network and HF_TOKEN; HF_HUB_OFFLINE=1 takes "
            f"what the hub's cache has, and {local}"
        ) from None
