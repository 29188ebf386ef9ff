"""The files of a corpus, copied from a local folder or downloaded from their public sources.

Both check the hashes that `data/sources.yaml` pins, and return the origin of each file::

    from_local(Path("corpora/esconv"), source, Path("new/esconv"))  # {"train.txt": "local", …}
    from_web("esconv", source, Path("new/esconv"), web)  # {"train.txt": "https://…", …}
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from attune.download.archives import check_count, matches, unpack
from attune.download.sources import Archive, Source
from attune.download.tracked import adding, in_experiment
from attune.runtime.errors import DownloadError
from attune.runtime.io import sha256_of, write_json

TIMEOUT_SECONDS = 30
RETRIES = 2


# From a local folder


def from_local(folder: Path, source: Source | None, target: Path) -> dict[str, str]:
    """Copy the files that `source` lists; without a source, every file that is not hidden.

    Raises:
        DownloadError: a file is missing, or its hash differs from the pinned hash.
    """
    pins = _pins(folder, source) if source else dict.fromkeys(_visible(folder))
    for file, pinned in pins.items():
        if not (folder / file).is_file():
            raise _missing(file, folder, source)
        _copy(folder / file, target / file)
        if pinned and (actual := sha256_of(target / file)) != pinned:
            expected = f"sha256 expected {pinned} (data/sources.yaml), actual {actual}"
            raise DownloadError(f"{folder / file} is not the published file: {expected}")
    return dict.fromkeys(pins, "local")


def _pins(folder: Path, source: Source) -> dict[str, str | None]:
    """The listed files and their pinned hashes; members of an archive have no pinned hash."""
    pins = {single.file: single.sha256 for single in source.files}
    for archive in source.archives:
        pins |= dict.fromkeys(_local_members(archive, folder, source))
    return pins


def _local_members(archive: Archive, folder: Path, source: Source) -> list[str]:
    names: list[str] = []
    for member in archive.members:
        matched = [name for name in _names(folder.glob(member), folder) if matches(name, member)]
        if not matched:
            raise _missing(member, folder, source)
        names += matched
    check_count(archive, names, str(folder))
    return names


def _visible(folder: Path) -> list[str]:
    names = [name for name in _names(folder.rglob("*"), folder) if not re.search(r"(^|/)\.", name)]
    if not names:
        raise DownloadError(
            f"corpus {folder.name!r} is not in data/sources.yaml, and {folder} holds no files for it{_copied(folder)}"
        )
    return names


def _names(paths: Iterable[Path], folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_file())


def _copy(origin: Path, target: Path) -> None:
    """Copy the content without the mode: a read-only original must not make a read-only copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(origin, target)


def _missing(file: str, folder: Path, source: Source | None) -> DownloadError:
    return DownloadError(
        f"{file} is missing in {folder}: a local folder (corpus.local_dir or CORPORA_DIR) serves every corpus of a "
        f"run, laid out as <corpus>/<file>{_copied(folder)}.{_hint(source)}"
    )


def _copied(folder: Path) -> str:
    if not in_experiment(Path.cwd()) or folder.is_absolute():
        return ""
    return f". This is an experiment's copy of the tracked files: where you started it, {adding(folder)}"


def _hint(source: Source | None) -> str:
    return f" {source.hint}" if source and source.hint else ""


# From public sources


class Web:
    """Public files through pooch's cache; `recorded` (address -> sha256) grows with every first use."""

    def __init__(self, cache: Path, first_use: Path) -> None:
        self.cache, self.first_use = cache, first_use
        self.recorded = read_first_use(first_use)

    def fetch(self, url: str, pinned: str | None, place: str) -> Path:
        """The cached copy of `url`; downloaded unless a copy with the pinned or recorded hash exists.

        Raises:
            DownloadError: it cannot be downloaded or stored, or its hash differs; nothing of it stays in the cache.
        """
        import pooch
        import requests

        name, known = _cache_name(url), pinned or self.recorded.get(url)
        registry = {name: None if known is None else f"sha256:{known}"}
        # Pooch compares the hash before it renames the file to its final name.
        store = pooch.Pooch(self.cache, "", registry, {name: url}, retry_if_failed=RETRIES)
        downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT_SECONDS)
        try:
            path = Path(store.fetch(name, downloader=downloader))
        except requests.RequestException as error:
            raise DownloadError(f"{place}: {url} cannot be downloaded ({error}): {_by_hand(place)}") from None
        except OSError as error:
            raise DownloadError(f"{place}: {url} cannot be stored in {self.cache}: {error}") from None
        except ValueError as error:
            raise self._wrong_hash(url, pinned, place, error) from None
        if pinned is None:
            self.recorded[url] = known or sha256_of(path)
        return path

    def save(self) -> None:
        """Write the hashes of first uses if there are new ones."""
        if self.recorded != read_first_use(self.first_use):
            write_json(self.first_use, dict(sorted(self.recorded.items())))

    def _wrong_hash(self, url: str, pinned: str | None, place: str, error: ValueError) -> DownloadError:
        if pinned is not None:
            return DownloadError(f"{place}: {url} is not the published file of data/sources.yaml: {error}")
        return DownloadError(
            f"{place}: {url} has changed since its first use ({self.first_use}): {error} To accept the change, put the "
            "new hash into that file"
        )


def read_first_use(path: Path) -> dict[str, str]:
    """Address -> sha256 of files that were trusted on first use; empty if there is no such file yet.

    Raises:
        DownloadError: the file is not a JSON object of addresses and hashes.
    """
    if not path.is_file():
        return {}
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DownloadError(f"{path} is no valid JSON: {error}") from None
    if not isinstance(recorded, dict):
        raise DownloadError(f"{path} is no JSON object of address and sha256")
    for url, sha256 in recorded.items():
        if not isinstance(sha256, str) or not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise DownloadError(f"{path}: {url} = {sha256!r}: no sha256 of 64 lower-case hex digits")
    return recorded


def require_public(corpora: Sequence[str], sources: Mapping[str, Source]) -> None:
    """Refuse corpora without a public source, before the others are downloaded for hours.

    Raises:
        DownloadError: a corpus has no entry in `sources`, or a file of it has no URL.
    """
    for corpus in corpora:
        if corpus not in sources:
            raise DownloadError(
                f"corpus {corpus!r} is not in data/sources.yaml: add it there, or put its files into "
                f"<CORPORA_DIR>/{corpus} and set CORPORA_DIR (or corpus.local_dir) to that folder"
            )
        for single in sources[corpus].files:
            if single.url is None:
                place = f"{corpus}/{single.file}"
                raise DownloadError(f"{place} has no public source: {_by_hand(place)}.{_hint(sources[corpus])}")


def from_web(corpus: str, source: Source, target: Path, web: Web) -> dict[str, str]:
    """Download the files and unpack the archives of `source`, which has passed `require_public`.

    Raises:
        DownloadError: as `Web.fetch` and `unpack`.
    """
    origins: dict[str, str] = {}
    for single in source.files:
        assert single.url is not None
        _copy(web.fetch(single.url, single.sha256, f"{corpus}/{single.file}"), target / single.file)
        origins[single.file] = single.url
    for archive in source.archives:
        origins |= dict.fromkeys(_fetch_members(archive, corpus, target, web), archive.url)
    return origins


def _fetch_members(archive: Archive, corpus: str, target: Path, web: Web) -> list[str]:
    names = ",".join(archive.members)
    place = f"{corpus}/{{{names}}}" if len(archive.members) > 1 else f"{corpus}/{names}"
    path = web.fetch(archive.url, archive.sha256, place)
    try:
        return unpack(path, archive, target)
    except DownloadError:
        # Without a pinned hash the download may be something else (an error page, say): the next run must not reuse it.
        if archive.sha256 is None:
            path.unlink(missing_ok=True)
        raise


def _cache_name(url: str) -> str:
    """A name that is unique to the address and ends with the readable name of the file."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", url.rsplit("/", 1)[1])[-80:]
    return f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{readable}"


def _by_hand(place: str) -> str:
    return (
        f"put the file into <CORPORA_DIR>/{place} and set CORPORA_DIR (or corpus.local_dir) to that folder, "
        "which then serves every corpus of the run"
    )
