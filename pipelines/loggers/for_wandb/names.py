"""Names and tags as W&B takes them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

from segquant_bench.texts import plain

LONGEST = 128
"""Characters of a project, a run, a group and an artifact."""
LONGEST_TAG = 64


def shortened(text: str, most: int = LONGEST) -> str:
    """At most `most` characters on one line; longer texts end in a hash, and stay apart."""
    line = plain(text)
    if len(line) <= most:
        return line
    return f"{line[: most - 9]}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"


def artifact_name(text: str) -> str:
    """W&B takes 128 letters, digits and "_.-"."""
    return shortened(re.sub(r"[^A-Za-z0-9_.-]", "-", plain(text)))


def all_tags(*groups: Sequence[str]) -> list[str]:
    """Each once, those of WANDB_TAGS too, which an argument of wandb.init would hide."""
    ours = [tag for group in groups for tag in group if tag]
    return list(dict.fromkeys(shortened(tag, LONGEST_TAG) for tag in [*ours, *environment_tags()]))


def environment_tags() -> list[str]:
    return [tag for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag]
