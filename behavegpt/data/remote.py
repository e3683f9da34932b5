"""Prepared folders on any file system that fsspec knows (s3://, gs://, https://, ...), read through
a local copy.

A folder is fetched once for a machine into CACHE/CONTENT_HASH, checked against its content hash,
and put in place in one rename; from then on it is memory-mapped like any other. So a run's rows and
its resumption do not depend on where the data lie, and data that were replaced under the same name
are other data. CACHE is $BEHAVEGPT_CACHE, else ~/.cache/behavegpt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock
from pydantic import ValidationError

from behavegpt.checksums import seal
from behavegpt.data.digest import hash_folder
from behavegpt.data.store import Manifest, files_of
from behavegpt.data.vocabulary import Vocabulary
from behavegpt.errors import DataError
from behavegpt.paths import cache_folder

URL = re.compile(r"([a-z][a-z0-9+.-]+):/{1,3}(.*)", re.DOTALL)
LOCAL = ("file", "local")


def is_remote(path: str | Path) -> bool:
    """Whether a path names a file system; a single letter is a drive."""
    return URL.fullmatch(str(path)) is not None


def fetch(path: str | Path) -> Path:
    """The local copy of a prepared folder, fetched if it is not here yet. Raises DataError."""
    url = _whole_url(str(path))
    files, root = _open(url)
    manifest = _manifest(files, root, url)
    cache = cache_folder() / "data"
    final = cache / manifest.content_hash

    if final.is_dir():
        return final
    cache.mkdir(parents=True, exist_ok=True)

    with FileLock(cache / f".{manifest.content_hash}.lock"):  # of several ranks one fetches
        if final.is_dir():
            return final
        folder = cache / f".{manifest.content_hash}.part"
        shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
        try:
            # with dataset.json anew: the folder may have been replaced since it was read above
            for name in files_of(manifest):
                _copy(files, f"{root}/{name}", folder / name, f"{url}/{name}")
            _check(folder, manifest, url)
            seal(folder)
            # whoever sees the folder sees all of it
            os.rename(folder, final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return final


def _whole_url(path: str) -> str:
    """With both slashes: `Path` takes one away."""
    match = URL.fullmatch(path)
    assert match is not None

    # file:///x and local:/x have no host: their path begins with a slash
    rest = f"/{match[2].lstrip('/')}" if match[1] in LOCAL else match[2]
    return f"{match[1]}://{rest}".rstrip("/")


def _open(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise DataError(
            f"{url}: {error}; install the library for this kind of address, or copy the folder."
        ) from None
    return files, root.rstrip("/")


def _manifest(files: Any, root: str, url: str) -> Manifest:
    try:
        manifest = Manifest.model_validate(json.loads(files.cat_file(f"{root}/dataset.json")))
    except FileNotFoundError:
        raise DataError(
            f"{url}: not a prepared folder (no dataset.json); check the address."
        ) from None
    except (ValidationError, ValueError) as error:
        raise DataError(f"{url}/dataset.json: damaged ({error}); copy the folder again.") from None
    except Exception as error:  # whatever the file system's library raises
        raise DataError(
            f"{url}: cannot be read ({type(error).__name__}: {error}); check address and access."
        ) from None

    # it becomes the name of a folder: nothing but the digits of a hash may stand there
    if not manifest.content_hash.isalnum():
        raise DataError(
            f"{url}/dataset.json: names that `prepare` does not write; copy the folder again."
        )
    return manifest


def _copy(files: Any, source: str, target: Path, shown: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        files.get_file(source, str(target))
    except Exception as error:  # whatever the file system's library raises
        raise DataError(
            f"{shown}: cannot be fetched ({type(error).__name__}: {error}); try again."
        ) from None


def _check(folder: Path, manifest: Manifest, url: str) -> None:
    """Raise DataError unless the folder holds what its content hash says."""
    try:
        # the manifest says how columns are read: it must be the one that was looked at
        same = json.loads((folder / "dataset.json").read_bytes()) == manifest.model_dump(
            mode="json"
        )
        vocabulary = {
            f: Vocabulary.load(folder / "vocabulary" / f"{f}.parquet").hash
            for f in manifest.vocabulary
        }
        actual = hash_folder(folder, manifest.event_schema, vocabulary, list(manifest.columns))
    except (DataError, OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(
            f"{url}: damaged ({error}); copy the folder again from its source."
        ) from None
    if not same or actual != manifest.content_hash:
        raise DataError(
            f"{url}: what was fetched has another content hash than dataset.json says "
            f"({actual[:12]}…, not {manifest.content_hash[:12]}…): damaged, or replaced meanwhile. "
            "Try again, or copy the folder again."
        )
