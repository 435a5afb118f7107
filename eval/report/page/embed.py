"""What the page holds beside its text: data, scripts and styles, safe inside of HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from segquant_bench.eval.tables.render_html import escape
from segquant_bench.texts import plain

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = (
    "dom", "tip", "state", "table", "columns", "pairs", "axes", "scatter", "searches", "lines", "heat", "pictures",
    "zoom", "compare", "start",
)  # fmt: skip
"""In the order in which they run."""


def data_block(name: str, content: Any) -> str:
    """A `<script>` of JSON, which no browser runs; `plain` texts, infinities as "inf" and "-inf"."""
    return f"<script type='application/json' id='data-{escape(name)}'>{to_json(content)}</script>"


def to_json(content: Any) -> str:
    """JSON in which no tag can end or begin: `<`, `>` and `&` are escaped."""
    text = json.dumps(_encoded(content), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _encoded(content: Any) -> Any:
    if isinstance(content, str):
        return plain(content)
    if isinstance(content, float):
        return content if math.isfinite(content) else str(content)
    if isinstance(content, dict):
        return {key: _encoded(value) for key, value in content.items()}
    if not isinstance(content, list | tuple) or _is_numbers(content):
        return content
    return [_encoded(value) for value in content]


def _is_numbers(content: Sequence[Any]) -> bool:
    """Whether there are finite numbers and None alone: a page has millions of them."""
    return set(map(type, content)) <= {float, NoneType} and all(map(math.isfinite, filter(None, content)))


@lru_cache(maxsize=1)
def script() -> str:
    """All modules in one function of their own."""
    parts = [(ASSETS / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return '(() => {\n"use strict";\n' + "\n".join(parts) + "})();\n"


@lru_cache(maxsize=1)
def style() -> str:
    return (ASSETS / "page.css").read_text(encoding="utf-8")


def policy() -> str:
    """What the browser lets the page do: run this script alone, and load nothing from anywhere."""
    digest = base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
