"""Unpack the listed members of published archives (tar or zip) as plain files; nothing else is written.

Archives are not trusted: absolute names, names with `..`, links and devices are skipped, and the listed members may not
unpack to more than `MOST_BYTES`. pooch's Untar and Unzip check none of this (Untar filters from Python 3.12 on only).
"""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from attune.download.sources import Archive, is_inside
from attune.runtime.errors import DownloadError

# Unpacked size of all listed members; the largest published corpus here has 0.2 GiB.
MOST_BYTES = 4 * 2**30
# Errors of broken, encrypted or hostile archives.
_UNPACKING = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError, ValueError)


def unpack(path: Path, archive: Archive, target: Path) -> list[str]:
    """Unpack the members of `archive`, stored at `path`, into `target`, and return their names there.

    Raises:
        DownloadError: the archive is damaged, a member is missing or not a plain file, their number differs from
            `archive.count`, or they would unpack to more than `MOST_BYTES`.
    """
    extract = _from_zip if zipfile.is_zipfile(path) else _from_tar
    with TemporaryDirectory(prefix=".unpack-", dir=target.parent) as scratch:
        try:
            members = extract(path, archive, Path(scratch))
        except _UNPACKING as error:
            reason = f"{type(error).__name__}: {error}"
            raise DownloadError(f"{archive.url} cannot be unpacked into {target}: {reason}") from None
        _check(archive, members)
        for file, member in members.items():
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            Path(scratch, member).replace(target / file)
    return sorted(members)


def matches(file: str, pattern: str) -> bool:
    """Match part by part, so that `*` stays within a folder; `*` matches no hidden name."""
    parts, patterns = PurePosixPath(file).parts, PurePosixPath(pattern).parts
    if len(parts) != len(patterns):
        return False
    pairs = zip(parts, patterns, strict=True)
    return all(fnmatchcase(part, each) and part.startswith(".") <= each.startswith(".") for part, each in pairs)


def check_count(archive: Archive, files: Collection[str], where: str) -> None:
    """Check the number of files against `archive.count`.

    Raises:
        DownloadError: the numbers differ; names `where`.
    """
    if archive.count not in (None, len(files)):
        wanted = ", ".join(archive.members)
        raise DownloadError(
            f"{where} holds {len(files)} files for {wanted}, but data/sources.yaml counts {archive.count}"
        )


def _from_tar(path: Path, archive: Archive, scratch: Path) -> dict[str, str]:
    with tarfile.open(path) as tar:
        wanted = {file: each for each in tar if each.isreg() and (file := _wanted(each.name, archive))}
        _check_size(each.size for each in wanted.values())
        tar.extractall(scratch, members=wanted.values(), filter="data")
    return {file: member.name for file, member in wanted.items()}


def _from_zip(path: Path, archive: Archive, scratch: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as zipped:
        # The upper half of the attributes holds the Unix file type; a link's content is its target.
        plain = [each for each in zipped.infolist() if not each.is_dir() and each.external_attr >> 28 in (0, 0o10)]
        wanted = {file: each for each in plain if (file := _wanted(each.filename, archive))}
        _check_size(each.file_size for each in wanted.values())
        zipped.extractall(scratch, members=wanted.values())
    return {file: member.filename for file, member in wanted.items()}


def _check_size(sizes: Iterable[int]) -> None:
    """Check the declared sizes; neither tarfile nor zipfile unpacks more of a member than its header declares.

    Raises:
        ValueError: the total is too large. A sparse file counts with its holes, which a reader would read.
    """
    if (total := sum(sizes)) > MOST_BYTES:
        raise ValueError(f"its wanted members have {total:,} bytes, and at most {MOST_BYTES:,} are unpacked")


def _wanted(member: str, archive: Archive) -> str | None:
    """The name of a member below `archive.folder`, if it is safe and listed."""
    path, folder = PurePosixPath(member), PurePosixPath(archive.folder)
    if not is_inside(member) or not path.is_relative_to(folder):
        return None
    file = path.relative_to(folder).as_posix()
    return file if any(matches(file, pattern) for pattern in archive.members) else None


def _check(archive: Archive, files: Collection[str]) -> None:
    for pattern in archive.members:
        if not any(matches(file, pattern) for file in files):
            raise DownloadError(f"{archive.url} holds no plain file {PurePosixPath(archive.folder, pattern)}")
    check_count(archive, files, archive.url)
