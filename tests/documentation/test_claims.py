"""The table of docs/evaluation.md, computed anew; C5, which trains models, by `make claims`."""

import re

import pytest

import paper_claims
from families import ROOT

NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]\d+)?(?![\w.]*\w)")
PAGE = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def lab():
    return paper_claims.Lab()


@pytest.mark.parametrize(
    "name", [claim.__name__ for claim in paper_claims.CLAIMS if claim.__name__ != "c5"]
)
def test_the_page_says_what_is_measured(lab, name):
    claim = getattr(paper_claims, name)(lab)
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {claim.name} |"))
    _, _, text, measured, verdict, _ = line.split(" | ".strip())
    assert text.strip() == claim.text
    assert verdict.strip() == claim.verdict
    there, here = (list(map(float, NUMBER.findall(said))) for said in (measured, claim.measured))
    assert len(there) == len(here) > 1
    for old, new in zip(there, here, strict=True):
        assert old == pytest.approx(new, abs=0.05 if abs(old) > 0.2 else 1e-3, rel=0.2)


def test_the_page_has_every_claim():
    names = re.findall(r"^\| (C\d+) \|", PAGE, re.M)
    assert names == [claim.__name__.upper() for claim in paper_claims.CLAIMS]
