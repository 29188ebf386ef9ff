"""Chats of the Hugging Face hub as Parquet files, one for each split."""

from __future__ import annotations

from pathlib import Path

from attune.config.schema import Messages
from attune.runtime.errors import DownloadError
from attune.runtime.hub import load_splits


def from_hub(settings: Messages, target: Path) -> dict[str, str]:
    """Write the splits of a data set to `target` as `<split>.parquet`.

    Args:
        settings: with `splits` only those named there.
        target: folder that exists.

    Returns:
        File to its origin, `hf://datasets/<hub_id>@<commit>`.

    Raises:
        DownloadError: as `load_splits`.
    """
    hub_id, names = str(settings.hub_id), tuple(settings.splits)
    of_hub = (hub_id, settings.subset, settings.revision)
    commit, splits = load_splits(*of_hub, "corpus.messages", names, DownloadError)
    wanted = names or tuple(splits)
    for name in wanted:
        splits[name].to_parquet(target / f"{name}.parquet")
    return dict.fromkeys((f"{name}.parquet" for name in wanted), f"hf://datasets/{hub_id}@{commit}")
