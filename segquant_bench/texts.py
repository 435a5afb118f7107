"""Text that people typed, as one line that no renderer takes for anything else; for pipelines and eval."""

from __future__ import annotations

import re

_BREAKS = re.compile("[\t-\r\x1c-\x1f\x85\u2028\u2029]+")
# Controls (terminals obey them), overrides of reading order (they turn around what follows) and halves of characters
# (no file can hold them). Marks and joiners that scripts and emoji need are none of these.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def plain(text: str) -> str:
    r"""Text on one line: line breaks and tabs become a space, what cannot be seen its escape.

    >>> plain("a red\r\ncat"), plain("a\x1b[2J")
    ('a red cat', 'a\\x1b[2J')
    """
    return _UNSEEN.sub(_escape, _BREAKS.sub(" ", text))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


def is_plain(text: str) -> bool:
    """Whether `plain` leaves it as it is, and no space is lost at its ends."""
    return plain(text) == text == text.strip()
