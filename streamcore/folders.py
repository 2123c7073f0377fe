"""The folders of a store and of its topics: made so that their names last, removed so that nobody sees half of one."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Literal

from streamcore.catalog import CATALOG_NAME
from streamcore.errors import StorageError, StoreFormatError
from streamcore.files import check_folder, sync_folder

Mode = Literal["r", "rw"]
DELETED_PREFIX = ".deleted~"  # no topic has such a name


def prepare_folder(path: Path, mode: Mode) -> None:
    """A store's folder that can be opened so, made where it may be. Raises StorageError, StoreFormatError."""
    try:
        if mode == "rw":
            _make_folders(path)
        elif not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "") if path.exists() else FileNotFoundError(errno.ENOENT, "")
        with contextlib.suppress(FileNotFoundError):
            check_folder(path / "topics")
    except (FileExistsError, NotADirectoryError):
        raise StorageError(errno.ENOTDIR, f"{path} cannot be opened as a store", str(path)) from None
    except OSError as error:
        raise StorageError(error.errno or 0, f"{path} cannot be opened as a store", str(path)) from None
    try:
        if os.path.lexists(path / CATALOG_NAME):
            return
        has_topics = mode == "rw" and any((path / "topics").iterdir())
    except OSError as error:
        raise StorageError(error.errno or 0, f"{path} cannot be opened as a store", str(path)) from None
    if mode == "r":
        raise StoreFormatError(f"{path} is not a store: it has no {CATALOG_NAME}")
    if has_topics:
        raise StoreFormatError(f"{path} has topics but no {CATALOG_NAME}: restore that file from a backup")


def remove_folder(path: Path) -> None:
    """As far as that is possible: who opens the store next removes what is left."""
    with contextlib.suppress(OSError):  # rmtree does not ignore all of them
        shutil.rmtree(path, ignore_errors=True)


def _make_folders(path: Path) -> None:
    """The store's folder, those above it that are missing, and that of its topics.

    Their names must last as long as what is in them. The catalog is made behind that: where it is, they do.
    """
    if not (path / CATALOG_NAME).exists():
        missing = sum(not folder.exists() for folder in path.parents)
        path.mkdir(parents=True, exist_ok=True)
        for parent in path.parents[: missing + 1]:
            with contextlib.suppress(PermissionError):  # it may be written to, and not be read
                sync_folder(parent)
    elif os.path.lexists(path / "topics"):
        return
    (path / "topics").mkdir(exist_ok=True)
    sync_folder(path)


def make_topic_folder(store_path: Path, folder: str) -> None:
    """An empty one, whose name lasts. Raises StorageError."""
    topics = store_path / "topics"
    try:
        (topics / folder).mkdir()
        sync_folder(topics)
    except OSError as error:
        raise StorageError(error.errno or 0, "a topic's folder cannot be made", str(topics / folder)) from None


def remove_topic_folder(store_path: Path, folder: str) -> None:
    """Also where another process is at it, or began. Raises StorageError."""
    topics = store_path / "topics"
    gone = topics / (DELETED_PREFIX + folder)[:255]
    try:
        with contextlib.suppress(FileNotFoundError):
            (topics / folder).rename(gone)
        sync_folder(topics)
    except OSError as error:
        raise StorageError(error.errno or 0, "a topic's folder cannot be removed", str(topics / folder)) from None
    remove_folder(gone)
