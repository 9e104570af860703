"""Whether a file may be written, asked before hours of work; nothing else is ever written over."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

from edge_monitor.errors import InputError, about


def check_map_file(path: Path) -> None:
    """Refuse a file that cannot be written or holds something other than a region map.

    Raises
    ------
    InputError
        The folder is missing or read-only, or the file exists and is no map.
    """
    _check(path, "region map", _is_map)


def check_page_file(path: Path) -> None:
    """Refuse a file that cannot be written or holds something other than a page.

    Raises
    ------
    InputError
        The folder is missing or read-only, or the file exists and is no HTML page.
    """
    _check(path, "HTML page", _is_page)


def require_folder(folder: Path) -> None:
    """Refuse a folder into which nothing can be written.

    Raises
    ------
    InputError
        It is missing, no directory, or read-only.
    """
    if not folder.is_dir():
        raise InputError(folder, "is no directory")
    if not os.access(folder, os.W_OK):
        raise InputError(folder, "cannot be written")


def _check(path: Path, kind: str, is_one: Callable[[Path], bool]) -> None:
    with about(path):
        require_folder(path.absolute().parent)
    if not path.exists():
        return
    # What is no regular file is not even opened: a pipe would wait for its writer.
    if not (path.is_file() and is_one(path)):
        raise InputError(path, f"exists and is no {kind}")


def _is_map(path: Path) -> bool:
    """Whether a file holds the parts of a map; frames are archives as well, and must not be lost."""
    try:
        with zipfile.ZipFile(path) as archive:
            return {"meta.npy", "eeg.floor.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _is_page(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return False
    return head.lstrip().lower().startswith((b"<!doctype html", b"<html"))
