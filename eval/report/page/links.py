"""Addresses of a run's own files, as seen from the page."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

CONFIG = Path(".hydra") / "config.yaml"


def link(path: Path, page_folder: Path) -> str:
    """A relative URL; on another drive the file's own."""
    try:
        relative = os.path.relpath(path, page_folder)
    except ValueError:  # another drive
        return path.as_uri()
    # "./" keeps a name with a colon from being read as a scheme
    return "./" + quote(relative.replace(os.sep, "/"), safe="/")


def folder_link(record: Path, page_folder: Path) -> str:
    """Of the folder that a `results.json` or `failure.json` is in."""
    return link(record.parent, page_folder).rstrip("/") + "/"


def config_link(record: Path, page_folder: Path) -> str:
    """Of the configuration as the run was given it; empty where there is none."""
    path = record.parent / CONFIG
    return link(path, page_folder) if path.is_file() else ""


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path, links followed, stays in a folder."""
    return path.resolve().is_relative_to(folder.resolve())
