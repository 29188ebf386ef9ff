"""The rows of a file of preference pairs, or of a dataset of the Hugging Face hub, with their places for errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attune.pairs.preference_formats import shown
from attune.runtime.errors import DataError
from attune.runtime.io import read_lines, read_text

if TYPE_CHECKING:
    from attune.config.schema import PairFile, Pairs

FORMATS = (".jsonl", ".json", ".parquet")
MISSING = "pairs.table names the preference pairs of pairs.rule = file"
# The files of a dataset that are taken from the hub: no code, no pickle.
HUB_FILES = ["*.md", "*.yaml", "*.json", "*.jsonl", "*.parquet", "*.csv", "*.arrow", "*.json.gz", "*.jsonl.gz"]

Row = tuple[str, dict[str, Any]]
"""Where a row stands, and its columns."""


def read_parts(settings: Pairs) -> tuple[Iterator[Row], Iterator[Row] | None]:
    """The rows to train on, and those of a held-out part; None if there is no such part.

    Args:
        settings: section `pairs`, whose `table` is a file, or a folder with a file train and perhaps a file test;
            `file.hub_id` names a dataset of the hub instead.

    Raises:
        DataError: there is no such file, folder, dataset or part, or it cannot be read.
    """
    if settings.file.hub_id is not None:
        return hub_parts(settings.file, settings.file.hub_id)
    path = Path(settings.table)
    if not path.is_dir():
        return read_rows(path), None
    train, test = (of_part(path, part) for part in ("train", "test"))
    if train is None:
        raise DataError(f"{path} holds no train.jsonl, train.json or train.parquet: {MISSING}")
    return read_rows(train), None if test is None else read_rows(test)


def of_part(folder: Path, part: str) -> Path | None:
    """The file of a part, by its name without the ending.

    Raises:
        DataError: there are several.
    """
    found = [path for ending in FORMATS if (path := folder / f"{part}{ending}").is_file()]
    if len(found) > 1:
        raise DataError(f"{folder} holds {' and '.join(path.name for path in found)}: keep one of them")
    return found[0] if found else None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a jsonl, json (a list of objects) or parquet file.

    Raises:
        DataError: the file is missing or no such file; names file and line or row.
    """
    match path.suffix:
        case ".jsonl":
            return _json_lines(path)
        case ".json":
            return _json_list(path)
        case ".parquet":
            return _parquet(path)
    raise DataError(f"{path} is no {', '.join(FORMATS)} file: {MISSING}")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path, DataError, MISSING), start=1):
        if line.strip():
            where = f"{path}:{number}"
            yield where, _object(_parsed(line, where), where)


def _json_list(path: Path) -> Iterator[Row]:
    rows = _parsed(read_text(path, DataError, MISSING), str(path))
    if not isinstance(rows, list):
        raise DataError(f"{path} holds no list of objects: write [{{…}}, {{…}}], or an object a line as .jsonl")
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        yield where, _object(row, where)


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    # Besides invalid JSON: a number of too many digits, and brackets nested too deep.
    except (ValueError, RecursionError) as problem:
        advice = "; an object a line is .jsonl" if str(problem).startswith("Extra data") else ""
        raise DataError(f"{where}: no valid JSON: {problem}{advice}") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataError(f"{where}: a row is an object with chosen and rejected, not {json.dumps(row)[:40]}")
    return row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {MISSING}") from None
    # UnicodeDecodeError is a ValueError.
    except (pa.ArrowException, OSError, ValueError) as problem:
        raise DataError(f"{path} is no valid parquet file after row {number}: {_first_line(problem)}") from None


def hub_parts(settings: PairFile, hub_id: str) -> tuple[Iterator[Row], Iterator[Row] | None]:
    """As `read_parts`, of a dataset of the hub at the commit `settings.revision`; its splits are the parts.

    The files come from the hub's cache, or are downloaded into it. No code of the dataset is run.
    """
    what = f"pairs.file.hub_id = {hub_id!r} at commit {settings.revision}"
    with _hub_errors(what):
        folder = dataset_folder(hub_id, str(settings.revision))
        splits = _load(folder, settings.config)
    if settings.train not in splits:
        raise DataError(f"{what} has no split {settings.train!r} but {', '.join(splits)}: set pairs.file.train")
    test = splits.get(settings.test)
    train_rows = _hub_rows(splits[settings.train], f"{hub_id}, split {settings.train}")
    return train_rows, None if test is None else _hub_rows(test, f"{hub_id}, split {settings.test}")


def dataset_folder(hub_id: str, commit: str) -> Path:
    """The folder of a dataset's commit in the hub's cache; the hub is asked only where files are missing there."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked: dict[str, Any] = {"repo_type": "dataset", "revision": commit, "allow_patterns": HUB_FILES}
    try:
        folder = Path(snapshot_download(hub_id, **asked, local_files_only=True))
        if not (missing := missing_shards(folder)):
            return folder
        if constants.HF_HUB_OFFLINE:
            raise DataError(f"{hub_id} at commit {commit}: the hub's cache lacks {missing[0]}: download it once")
    except LocalEntryNotFoundError:
        if constants.HF_HUB_OFFLINE:
            raise
    # Fails at once without a network, where snapshot_download tries again for half a minute.
    HfApi().dataset_info(hub_id, revision=commit)
    return Path(snapshot_download(hub_id, **asked))


def missing_shards(folder: Path) -> list[str]:
    """The files that an interrupted download has left out, by names such as train-00001-of-00004.parquet."""
    missing = []
    for path in sorted(folder.rglob("*-of-*")):
        if match := re.fullmatch(r"(.+-)(\d+)(-of-)(\d+)(\D.*)", path.name):
            start, number, of, count, end = match.groups()
            names = [f"{start}{i:0{len(number)}}{of}{count}{end}" for i in range(int(count))]
            missing += [name for name in names if not (path.parent / name).is_file()]
    return missing


def _load(folder: Path, config: str | None) -> dict[str, Any]:
    """The splits of a dataset in a local folder, by name.

    Raises:
        DataError: its card names files outside of the folder, which would be read, or fetched from other servers.
    """
    from datasets import load_dataset
    from datasets.utils import disable_progress_bars
    from huggingface_hub import DatasetCard

    if (card := folder / "README.md").is_file():
        configs = json.dumps(DatasetCard.load(card, ignore_metadata_errors=True).data.to_dict().get("configs"))
        if outside := re.search(r'"/[^"]*|[^"]*(\.\.|::|://)[^"]*', configs):
            raise DataError(f"{card} names a file outside of the dataset, {shown(outside[0].strip(chr(34)))}: not read")
    disable_progress_bars()
    return dict(load_dataset(str(folder), config))


def _hub_rows(split: Any, name: str) -> Iterator[Row]:
    for number, row in enumerate(split, start=1):
        yield f"{name}, row {number}", row


@contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Within the block, errors of the hub and of `datasets` become a `DataError` of one sentence."""
    import httpx2
    from datasets.exceptions import DatasetGenerationError, DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    expected = (HfHubHTTPError, httpx2.TransportError, DatasetsError, DatasetGenerationError, OSError, ValueError)
    try:
        yield
    except expected as error:
        raise DataError(
            f"{what} cannot be had: {_first_line(error)}. Check the id, the network and HF_TOKEN; HF_HUB_OFFLINE=1 "
            "takes what the hub's cache has, and pairs.table a local file"
        ) from None


def _first_line(error: BaseException) -> str:
    return re.sub(r"[ .:]+$", "", (str(error).strip() or type(error).__name__).splitlines()[0])
