"""Stage `download`: the raw files of the corpora in force, from a local folder or from their public sources.

Files land in `data/raw/<corpus>/<file>`; `data/manifest.json` (kept in Git) says where each came from, how big it is,
its sha256 and its licence. A hash that `data/sources.yaml` pins is compared. A file without one is trusted on first
use: its hash is recorded in `data/first_use.json` and compared ever after.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from attune.config.params import load as load_params
from attune.config.schema import Messages, Params
from attune.download.fetch import Web, from_local, from_web, require_public
from attune.download.hub import from_hub
from attune.download.licences import NOT_STATED, terms
from attune.download.licences import load as load_licences
from attune.download.sources import Source, is_inside
from attune.download.sources import load as load_sources
from attune.download.tracked import own_paths, untracked
from attune.runtime.cli import stage_arguments
from attune.runtime.errors import DownloadError, reported
from attune.runtime.io import sha256_of, write_text

SOURCES = Path("data/sources.yaml")
FIRST_USE = Path("data/first_use.json")
RAW_DIR = Path("data/raw")
MANIFEST = Path("data/manifest.json")
CACHE_DIR = Path(".cache/downloads")


@dataclass(frozen=True)
class Entry:
    """A line of the manifest; `origin` is "local", or the address of the file, of its archive, or of a hub's commit."""

    corpus: str
    file: str
    origin: str
    bytes: int
    sha256: str
    licence: str


def download(
    corpora: Sequence[str],
    raw_dir: Path,
    local_dir: Path | None,
    sources: Mapping[str, Source],
    first_use: Path,
    cache_dir: Path,
    hub: Mapping[str, Messages] | None = None,
    check: Callable[[Sequence[Entry]], None] | None = None,
) -> tuple[Entry, ...]:
    """Put the files of `corpora` into `raw_dir/<corpus>/<file>`, in place of whatever was there.

    With `local_dir` every file is copied from `local_dir/<corpus>/<file>`; without it files are fetched from the
    addresses in `sources`, through `cache_dir`; those of the corpora in `hub` from the Hugging Face hub. `raw_dir`
    changes only after everything was had and checked, also by `check`.

    Raises:
        DownloadError: a file is missing, cannot be reached or written, or has another hash than pinned or recorded.
    """
    hub = hub or {}
    if local_dir is None:
        require_public([corpus for corpus in corpora if corpus not in hub], sources)
    elif not local_dir.is_dir():
        raise DownloadError(f"the local folder {local_dir} (corpus.local_dir or CORPORA_DIR) does not exist")
    with _writing(raw_dir):
        raw_dir.parent.mkdir(parents=True, exist_ok=True)
        web = Web(cache_dir, first_use)
        # A neighbour of raw_dir, so that moving in is a rename.
        with TemporaryDirectory(prefix=".raw-", dir=raw_dir.parent) as scratch:
            new = Path(scratch, "raw")
            new.mkdir()
            taken = [
                _take_hub(corpus, new, hub[corpus])
                if corpus in hub
                else _take(corpus, new, local_dir, sources.get(corpus), web)
                for corpus in sorted(set(corpora))
            ]
            if check is not None:
                check([entry for entries in taken for entry in entries])
            web.save()
            _move_in(new, raw_dir, Path(scratch, "old"))
    return tuple(entry for entries in taken for entry in entries)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DownloadError(f"{path} cannot be written: {error}") from None


def _take(corpus: str, new: Path, local_dir: Path | None, source: Source | None, web: Web) -> list[Entry]:
    if not is_inside(corpus):
        raise DownloadError(f"corpus {corpus!r} is no name of a folder")
    target = new / corpus
    target.mkdir(parents=True)
    licence = source.licence if source else NOT_STATED
    if local_dir is not None:
        licence = _stated_licence(local_dir / corpus) or licence
        origins = from_local(local_dir / corpus, source, target)
    else:
        assert source is not None  # require_public
        origins = from_web(corpus, source, target, web)
    return _entries(corpus, target, origins, licence)


def _take_hub(corpus: str, new: Path, settings: Messages) -> list[Entry]:
    target = new / corpus
    target.mkdir(parents=True)
    return _entries(corpus, target, from_hub(settings, target), NOT_STATED)


def _entries(corpus: str, target: Path, origins: Mapping[str, str], licence: str) -> list[Entry]:
    paths = [(target / file, file, origin) for file, origin in sorted(origins.items())]
    return [Entry(corpus, file, origin, path.stat().st_size, sha256_of(path), licence) for path, file, origin in paths]


def _stated_licence(folder: Path) -> str:
    """The first line of the folder's own `LICENCE`, empty where there is none."""
    stated = folder / "LICENCE"
    return stated.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip() if stated.is_file() else ""


def _move_in(new: Path, raw_dir: Path, old: Path) -> None:
    """Swap the folders by two renames; the old one goes back if the second fails."""
    if raw_dir.exists():
        raw_dir.rename(old)
    try:
        new.rename(raw_dir)
    except OSError:
        if old.exists():
            old.rename(raw_dir)
        raise


def write_manifest(manifest: Iterable[Entry], path: Path) -> None:
    """Write the manifest as JSON, by the same files to the same bytes; where it cannot, a `DownloadError`."""
    text = json.dumps([asdict(entry) for entry in manifest], indent=2, sort_keys=True, ensure_ascii=False)
    with _writing(path):
        write_text(path, text + "\n")


def needed(params: Params) -> tuple[str, ...]:
    """The corpora that the run reads: dialogues, what a made model or a classifier is trained on, questions."""
    pretrained = [params.tiny.corpus] if params.model.is_made else []
    files = (Path(path) for one in params.classifiers.values() for path in (one.data, one.sentences))
    classified = dict.fromkeys(path.name for path in files if path.parent == RAW_DIR)
    asked = (params.mmlu.corpus, *([params.truth.corpus] if params.probed else []))
    others = (*pretrained, *classified, *asked)
    return (*params.corpus.parts, *(name for name in others if name != "sample"))


def local_folder(from_params: str | None, environment: Mapping[str, str]) -> tuple[Path | None, str]:
    """The local folder in force, and who named it: the parameter wins over the environment."""
    if folder := from_params or environment.get("CORPORA_DIR"):
        return Path(folder).expanduser(), "corpus.local_dir" if from_params else "CORPORA_DIR"
    return None, "data/sources.yaml"


def require_terms(entries: Iterable[Entry], params: Params) -> None:
    """Check that the terms of every licence are known, which model cards tell.

    Raises:
        DataError: the licence of a corpus or of the base model has no row in `data/licences.yaml`.
    """
    table = load_licences()
    for corpus, licence in {entry.corpus: entry.licence for entry in entries}.items():
        terms(table, licence, f"corpus {corpus}")
    terms(table, params.model.licence or NOT_STATED, f"model {params.model.name}")


def main() -> None:
    """Take the corpora in force and write the manifest."""
    params = load_params()
    corpus, corpora = params.corpus, needed(params)
    hub = {corpus.name: corpus.messages} if corpus.messages.hub_id else {}
    folder, named_by = local_folder(corpus.local_folder, os.environ)
    print(f"corpora {', '.join(corpora)} from {folder or 'their public sources'} ({named_by})")
    for sentence in untracked(own_paths(params)):
        print(sentence)

    own = dict.fromkeys(corpus.parts, corpus.licence) if corpus.licence else {}

    def stated(entries: Iterable[Entry]) -> tuple[Entry, ...]:
        return tuple(replace(entry, licence=own.get(entry.corpus) or entry.licence) for entry in entries)

    settings = (RAW_DIR, folder, load_sources(SOURCES), FIRST_USE, CACHE_DIR, hub)
    manifest = download(corpora, *settings, check=lambda entries: require_terms(stated(entries), params))
    write_manifest(stated(manifest), MANIFEST)


if __name__ == "__main__":
    with reported():
        stage_arguments(__doc__)
        main()
