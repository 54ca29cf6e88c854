"""The table of docs/limits.md that `make torture` writes is of the campaigns that there are."""

import re

from families import ROOT
from torture.campaigns import CAMPAIGNS


def test_the_page_has_every_campaign():
    _, _, page = (ROOT / "docs" / "limits.md").read_text("utf-8").partition("<!-- torture -->")
    table, _, _ = page.partition("<!-- end -->")
    assert re.findall(r"^\| (.+?) \| \d", table, re.M) == list(CAMPAIGNS)
