"""A data set of the Hugging Face hub as Parquet files, one for each split, by the package datasets.

No code of a repository is run: datasets 5 has no loading scripts. With HF_HUB_OFFLINE=1 a data set that was loaded
before comes from the cache of datasets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from attune.config.schema import Messages
from attune.runtime.errors import DownloadError

COMMIT = re.compile("[0-9a-f]{40}")


def from_hub(settings: Messages, target: Path) -> dict[str, str]:
    """Write the splits of a data set to `target` as `<split>.parquet`.

    Args:
        settings: `hub_id`, `subset` and `revision`; with `splits` only those named there.
        target: folder that exists.

    Returns:
        File to its origin, `hf://datasets/<hub_id>@<commit>`.

    Raises:
        DownloadError: there is no such data set, configuration or split, the hub cannot be reached, or the cache has
            another commit.
    """
    import datasets

    with _hub_errors(settings):
        commit = _commit(settings)
        builder = datasets.load_dataset_builder(str(settings.hub_id), settings.subset, revision=commit)
        cached = str(builder.hash)
        if commit is not None and cached != commit:
            raise DownloadError(
                f"{_name(settings)} is commit {commit}, but the cache of datasets holds {cached}: load it once with a "
                f"network, or set corpus.messages.revision = {cached}"
            )
        builder.download_and_prepare()
        splits: dict[str, Any] = dict(builder.as_dataset())
    wanted = [name for name in splits if not settings.splits or name in settings.splits]
    if missing := [name for name in settings.splits if name not in splits]:
        raise DownloadError(f"{_name(settings)} has no split {', '.join(missing)}: it has {', '.join(splits)}")
    for name in wanted:
        _with_names(splits[name]).to_parquet(target / f"{name}.parquet")
    return dict.fromkeys((f"{name}.parquet" for name in wanted), f"hf://datasets/{settings.hub_id}@{cached}")


def _commit(settings: Messages) -> str | None:
    """The commit that the revision is now; None where only the cache can say."""
    from huggingface_hub import HfApi, constants

    if COMMIT.fullmatch(settings.revision):
        return settings.revision
    if constants.HF_HUB_OFFLINE:
        return None
    return str(HfApi().dataset_info(str(settings.hub_id), revision=settings.revision).sha)


def _with_names(split: Any) -> Any:
    """The split with names instead of the numbers of classes."""
    import datasets

    classes = {key: feature for key, feature in split.features.items() if isinstance(feature, datasets.ClassLabel)}
    for key, feature in classes.items():
        names = [feature.names[number] if number is not None and number >= 0 else None for number in split[key]]
        split = split.remove_columns(key).add_column(key, names)
    return split


def _name(settings: Messages) -> str:
    return f"corpus.messages.hub_id = {settings.hub_id!r} at revision {settings.revision!r}"


@contextmanager
def _hub_errors(settings: Messages) -> Iterator[None]:
    """Within the block, errors of the hub and of datasets become a `DownloadError` of one sentence."""
    import httpx2
    from datasets.exceptions import DatasetGenerationError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    kinds = (
        HfHubHTTPError,
        httpx2.TransportError,
        DatasetsError,
        DatasetGenerationError,
        OSError,
        ValueError,
        RuntimeError,
    )
    try:
        yield
    except kinds as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")
        raise DownloadError(
            f"{_name(settings)} cannot be had: {reason}. Check the id, corpus.messages.subset, the network and "
            "HF_TOKEN; HF_HUB_OFFLINE=1 takes what the cache of datasets has, and corpus=messages a local file"
        ) from None
