"""Sentences that rank methods, and the comments behind them that say what results they stand on.

A paragraph or list item that ranks methods ends with one comment for each sentence that does:

    SegQuant-G is ahead of rounding in psnr at 8 bits.
    <!-- claim docs/demo: segquant_g ahead of rtn in psnr at w8a8_tensor -->

`docs/demo` stands for docs/demo/comparisons.csv; a path to a csv is taken as it is. Relations are those of RELATIONS.
Methods, metrics and precisions are lists with commas; `others` are all methods that are not SegQuant's or auto, `all`
is every one, both also `but` some; `on emoji_flux` at the end names models, without it all are meant. Where a word of
ranking ranks nothing, `<!-- no ranking: why -->` says so.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from segquant_bench.eval.report.runs.known import is_ours
from tests.docs.pages import ROOT, read

WORDS = re.compile(
    r"\b(ahead|behind|best|better|worse|worst|beats?|beaten|wins?|won|closest|lowest|highest|outperforms?|superior"
    r"|(?:is|are|'s) the least)\b",
    re.IGNORECASE,
)
METHODS = re.compile(
    r"segquant[-_][a-z]|smoothquant|gptq|quarot|\bawq\b|svdquant|q_diffusion|ptq4d|ptqd|`tac`|`rtn`|rounding|[`*]auto[`*]"
    r"|modelopt|torchao|quanto|sdnq|\bbnb_|gguf|dualscale|seglinear|convrot|vidit|\bbaselines?\b|\btools?\b",
    re.IGNORECASE,
)
CLAIM = re.compile(
    r"claim (?P<source>\S+): (?P<subject>.+?) (?P<relation>ahead of|behind|better than|worse than|level with) "
    r"(?P<others>.+?) in (?P<metrics>.+?) at (?P<precisions>.+?)(?: on (?P<models>.+))?"
)
TIE = "not distinguishable"


@dataclass(frozen=True)
class Row:
    """One comparison from its first method's side."""

    model: str
    precision: str
    subject: str
    other: str
    metric: str
    verdict: str
    leader: str


RELATIONS: dict[str, Callable[[Row], bool]] = {
    "ahead of": lambda row: row.leader == row.subject,
    "behind": lambda row: row.leader == row.other,
    "better than": lambda row: row.verdict == "better",
    "worse than": lambda row: row.verdict == "worse",
    "level with": lambda row: row.verdict == TIE,
}
"""Ahead: better, by an interval that leaves zero out and an adjusted p below 5 %, at comparable bytes or fewer."""
WHATEVER_BYTES = ("better than", "worse than")
_TURNED = {"better": "worse", "worse": "better", TIE: TIE}


@cache
def comparisons(source: str) -> tuple[Row, ...]:
    """Every comparison of a file, from both sides."""
    path = source if source.endswith(".csv") else f"{source}/comparisons.csv"
    found = []
    with (ROOT / path).open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            a, b, verdict = line["a"], line["b"], line["verdict"]
            leader = {"a": a, "b": b, "": ""}[line["ahead"]]
            place, metric = (line["where"], line["precision"]), line["metric"].partition("[")[0]
            found.append(Row(*place, a, b, metric, verdict, leader))
            found.append(Row(*place, b, a, metric, _TURNED[verdict], leader))
    return tuple(found)


def problems(comment: str, paragraph: str) -> Iterator[str]:
    """What a claim says that its results do not; nothing for a true one."""
    match = CLAIM.fullmatch(" ".join(comment.split()))
    if match is None:
        yield f"cannot be read: {comment.strip()!r}"
        return
    rows = [
        row for row in comparisons(match["source"]) if row.subject == match["subject"] and row.other != "unquantized"
    ]
    if not rows:
        yield f"{match['subject']} {match['relation']} {match['others']}: {match['source']} has no comparisons of it"
        return
    asked = {
        key: [word.strip() for word in (match[key] or "").split(",")] for key in ("metrics", "precisions", "models")
    }
    for metric in asked["metrics"]:
        for precision in asked["precisions"]:
            for model in asked["models"] if match["models"] else dict.fromkeys(row.model for row in rows):
                here = [row for row in rows if (row.metric, row.precision, row.model) == (metric, precision, model)]
                yield from _of_one_table(match, here, " ".join((metric, precision, model)), paragraph)


def _of_one_table(match: re.Match[str], rows: list[Row], place: str, paragraph: str) -> Iterator[str]:
    told = f"{match['subject']} {match['relation']}"
    for other in _others(match["others"], rows):
        found = [row for row in rows if row.other == other]
        if not found:
            yield f"{told} {other}: {match['source']} does not compare them in {place}"
        for row in found:
            if not RELATIONS[match["relation"]](row):
                yield f"{told} {other} in {place}: it is {row.verdict}, ahead is {row.leader or 'neither'}"
            elif (
                match["relation"] in WHATEVER_BYTES and not row.leader and not re.search(r"\bbytes\b|\bMB\b", paragraph)
            ):
                yield f"{told} {other} in {place}: the sentence must tell that the bytes differ"
    if not _others(match["others"], rows):
        yield f"{told} {match['others']}: {match['source']} has none in {place}"


def _others(told: str, rows: list[Row]) -> list[str]:
    kind, _, left = told.partition(" but ")
    if kind not in ("all", "others"):
        return [name.strip() for name in told.split(",")]
    without = [name.strip() for name in left.split(",")]
    return [row.other for row in rows if row.other not in without and (kind == "all" or not is_ours(row.other))]


def paragraphs(text: str) -> Iterator[str]:
    """Paragraphs, list items and table rows of a page, without headings and code."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        starts = not line.strip() or bool(re.match(r"\s*([-*]|\d+\.) |\||#", line))
        if starts and block:
            yield "\n".join(block)
            block = []
        if line.strip() and not line.startswith("#"):
            block.append(line)


def rankings(paragraph: str) -> list[str]:
    """Sentences that rank methods."""
    prose = re.sub(r"<!--.*?-->|(?:lower|higher|less|more) is better", "", paragraph, flags=re.DOTALL)
    prose = " ".join(prose.split())
    return [each for each in re.split(r"(?<=[.!?])\s+", prose) if WORDS.search(each) and METHODS.search(each)]


def faults(page: str) -> list[str]:
    """What is wrong with a page's rankings."""
    return list(_faults(read(page)))


def _faults(text: str) -> Iterator[str]:
    for paragraph in paragraphs(text):
        comments = [each.strip() for each in re.findall(r"<!--(.*?)-->", paragraph, re.DOTALL)]
        claims = [each for each in comments if each.startswith("claim")]
        excused = [each for each in comments if re.match(r"no ranking: \S", each)]
        found = rankings(paragraph)
        if len(found) > len(claims) + len(excused):
            yield f"{len(found)} sentences rank methods, {len(claims) + len(excused)} comments say by what: {found}"
        if not found and excused:
            yield f"ranks no methods and has a comment for that: {paragraph}"
        for claim in claims:
            yield from problems(claim, paragraph)
