"""Every sentence of README and docs that ranks methods says what results it stands on, and is right about them."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from tests.docs import claims
from tests.docs.claims import comparisons, faults, paragraphs, problems, rankings
from tests.docs.pages import PAGES, ROOT, read

LOG = "docs/lab.md"
"""Predictions and outcomes of the past, each with the command that repeats it: their results are not kept."""
RANKED = [page for page in PAGES if page.startswith(("README", "docs/")) and page != LOG]


@pytest.mark.parametrize("page", RANKED)
def test_rankings_of_a_page(page: str) -> None:
    assert faults(page) == []


def test_pages_with_results_have_claims() -> None:
    found = {page: len(re.findall(r"<!-- claim ", read(page))) for page in RANKED}
    assert min(found[f"docs/{name}/README.md"] for name in ("main", "families", "demo", "layouts")) > 1


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """a is ahead of b, better than c with more bytes, level with segquant_g; on another model worse than b."""
    head = ("where", "precision", "a", "b", "metric", "verdict", "ahead")
    told = [("m", "a", "b", "better", "a"), ("m", "c", "a", "worse", ""), ("m", "a", "segquant_g", claims.TIE, ""),
            ("n", "a", "b", "worse", "b"), ("m", "a", "unquantized", "worse", "")]  # fmt: skip
    rows = [(where, "w8a8", a, b, "psnr", verdict, leader) for where, a, b, verdict, leader in told]
    with (tmp_path / "comparisons.csv").open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    comparisons.cache_clear()
    yield
    comparisons.cache_clear()


@pytest.mark.parametrize(
    "claim",
    ["a ahead of b in psnr at w8a8 on m", "b behind a in psnr at w8a8 on m", "a better than b, c in psnr at w8a8 on m",
     "c worse than a in psnr at w8a8", "a level with segquant_g in psnr at w8a8 on m",
     "b ahead of a in psnr at w8a8 on n",
     "a better than others in psnr at w8a8 on m", "a better than all but segquant_g in psnr at w8a8 on m"],
)  # fmt: skip
def test_a_true_claim(results: None, claim: str) -> None:
    assert list(problems(f"claim .: {claim}", "with more bytes")) == []


@pytest.mark.parametrize(
    ("claim", "problem"),
    [
        ("a ahead of b in psnr at w8a8", "a ahead of b in psnr w8a8 n: it is worse, ahead is b"),
        ("a ahead of c in psnr at w8a8 on m", "it is better, ahead is neither"),
        ("a better than c in psnr at w8a8 on m", "must tell that the bytes differ"),
        ("a level with b in psnr at w8a8 on m", "it is better, ahead is a"),
        ("a behind b in psnr at w8a8 on m", "it is better, ahead is a"),
        (
            "a better than all in psnr at w8a8 on m",
            "a better than segquant_g in psnr w8a8 m: it is not distinguishable",
        ),
        ("a ahead of d in psnr at w8a8 on m", "a ahead of d: . does not compare them in psnr w8a8 m"),
        ("a ahead of b in ssim at w8a8 on m", "does not compare them in ssim w8a8 m"),
        ("a ahead of others in psnr at w4a8 on m", "has none in psnr w4a8 m"),
        ("d ahead of b in psnr at w8a8", "d ahead of b: . has no comparisons of it"),
        ("a beats b in psnr at w8a8", "cannot be read"),
    ],
)
def test_a_false_claim(results: None, claim: str, problem: str) -> None:
    found = list(problems(f"claim .: {claim}", "a is better than c."))
    assert any(problem in each for each in found), found


def test_sentences_that_rank_are_found() -> None:
    assert rankings("SegQuant-G is ahead\nof `rtn`. Others follow. *auto* beats GPTQ by 1 dB.") == [
        "SegQuant-G is ahead of `rtn`.", "*auto* beats GPTQ by 1 dB.",
    ]  # fmt: skip
    assert rankings("psnr of `gptq`: higher is better. Bytes are lowest at 4 bits. `gptq` takes minutes.") == []
    page = "# auto is best\n\n```sh\n# gptq is best\n```\n\n| method |\n|---|\n| best of gptq |\n\n- gptq wins\n- rtn\n"
    assert [p for p in paragraphs(page) if rankings(p)] == ["| best of gptq |", "- gptq wins"]


def test_a_page_needs_a_comment_for_each_sentence(results: None) -> None:
    sentence, claim = "`gptq` is ahead of `rtn`.", "<!-- claim .: a ahead of b in psnr at w8a8 on m -->"
    check = claims._faults
    assert list(check(f"{sentence}\n{claim}\n")) == [] and list(check(f"{sentence} {sentence}\n{claim}\n{claim}")) == []
    assert len(list(check(sentence))) == len(list(check(f"{sentence} {sentence}\n{claim}"))) == 1
    assert len(list(check(f"{sentence}\n\n{claim}"))) == 1, "a comment of another paragraph"
    assert len(list(check(f"{sentence}\n{claim.replace('ahead of', 'behind')}"))) == 1
    assert list(check(f"{sentence}\n<!-- no ranking: of kernels -->")) == []
    assert len(list(check(f"{sentence}\n<!-- no ranking: -->"))) == 1
    assert len(list(check("It is what it is.\n<!-- no ranking: of nothing -->"))) == 1


def test_the_documented_comparisons_are_of_this_form() -> None:
    for path in sorted((ROOT / "docs").rglob("*comparisons.csv")):
        rows = comparisons(path.relative_to(ROOT).as_posix())
        assert rows and {row.leader for row in rows if row.verdict == claims.TIE} <= {""}
