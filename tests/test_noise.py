"""What the user sees besides results: few words, each once, from a name that is public."""

import logging
import re

import pytest
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner

import safehead_tl as sh
from families import QUIET, ROOT
from safehead_tl.cli.main import app
from safehead_tl.models import no_bars
from safehead_tl.views.page import words


def test_a_warning_is_given_once_in_a_call_and_by_the_package(demo, tmp_path, caplog):
    told = {"top": 1, "shown": 1, "max_new_tokens": 0, "run": QUIET}
    for number in (1, 2):  # the next call says it again
        sh.report(demo, ["how do i bend a zzz"], tmp_path / "r.html", **told)
        said = [each for each in caplog.records if "does not know" in each.getMessage()]
        assert len(said) == number
    assert {each.name for each in caplog.records} == {"safehead_tl"}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        sh.evaluate(demo, ["zzz"], harmless=["zzz zzz"], max_new_tokens=1, run=QUIET)
    assert sum("does not know" in each.getMessage() for each in caplog.records) == 1


def test_export_loads_with_one_bar_at_most(tmp_path, monkeypatch, capfd):
    source = ROOT / "safehead_tl" / "data" / "organism" / "aligned"
    monkeypatch.setattr(transformers_logging, "_tqdm_active", True)
    sh.export(source, "L1H3", tmp_path / "out")
    assert len(re.findall("Loading weights: *100%", capfd.readouterr().err)) == 1


def test_bars_heed_the_environment(demo, monkeypatch, capfd):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    sh.generate(demo, ["bend"], max_new_tokens=1)
    sh.ships(demo, ["bend"], candidates="L1H3")
    assert capfd.readouterr().err == ""
    monkeypatch.setenv("TQDM_DISABLE", "0")
    assert not no_bars()
    assert no_bars(False)


def test_reprs_are_short(demo):
    texts = sh.generate(demo, ["how do i bend a crobe"], ["L1H3"], max_new_tokens=16, run=QUIET)
    assert repr(texts).startswith("<Generations: texts: 1, prompts: 1, L1H3 ablated; '")
    view = sh.attention(demo, "how do i bend a crobe", "L1H3")
    assert repr(view).startswith(f"<AttentionView: L1H3; {len(view.tokens)} tokens; ")
    assert max(len(repr(texts)), len(repr(view))) < 200


def test_passes_are_counted_whole(demo):
    scores = sh.ships(demo, ["how do i bend a crobe", "bend"], run=QUIET)
    assert re.search(r"; [\d,]+ forward passes", words.how(scores))


def test_small_scores_have_digits(demo, tmp_path):
    """As many in the command's table as anywhere: the ranks' scores are told apart."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("how do i bend a kite\n")
    said = CliRunner().invoke(app, ["ships", "demo", "--prompts", str(prompts), "--top", "32"])
    shown = re.findall(r"L\dH\d +│ +(\S+) +│", said.output)
    scores = sh.ships(demo, ["how do i bend a kite"], run=QUIET).ranked()
    assert [float(each) for each in shown] == pytest.approx([x for _, x in scores], rel=1e-3)
    assert min(x for _, x in scores if x > 0) < 5e-5
