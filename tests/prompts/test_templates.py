"""What stands around a prompt by default: what the model expects, and never in silence."""

import inspect
from dataclasses import replace
from pathlib import Path

import pytest

import safehead_tl as sh
from families import GOLDEN, QUIET
from safehead_tl.prompts.tokens import encode

TEMPLATED = [name for name in sh.__all__ if inspect.isfunction(getattr(sh, name))]


@pytest.fixture(scope="module")
def bare():
    """A model whose tokenizer has no chat template."""
    model = sh.load_model(GOLDEN / "mha")
    assert not model.tokenizer.chat_template
    return model


def test_the_default_is_the_same_everywhere():
    defaults = {
        name: inspect.signature(getattr(sh, name)).parameters["template"].default
        for name in TEMPLATED
        if "template" in inspect.signature(getattr(sh, name)).parameters
    }
    assert len(defaults) >= 10
    assert set(defaults.values()) == {"auto"}


def test_a_chat_model_is_asked_in_its_own_template(demo, prompts):
    found = sh.ships(demo, prompts, run=QUIET)
    chat = sh.ships(demo, prompts, template="chat", run=QUIET)
    assert (found.values == chat.values).all()
    assert found.provenance.prompts == chat.provenance.prompts
    assert found.provenance.prompts["template"] == "chat"


def test_a_model_without_one_is_asked_in_the_papers(bare, prompts, caplog):
    found = sh.ships(bare, prompts, run=QUIET)
    assert "no chat template: prompts stand in template='paper'" in caplog.text
    caplog.clear()
    paper = sh.ships(bare, prompts, template="paper", run=QUIET)
    direct = sh.ships(bare, prompts, template="direct", run=QUIET)
    assert (found.values == paper.values).all()
    assert not (found.values == direct.values).all()
    assert found.provenance.prompts["template"] == "paper"
    assert not caplog.records
    with pytest.raises(sh.SafeheadError, match="has no chat template: use template='paper'"):
        sh.ships(bare, prompts, template="chat", run=QUIET)


def test_what_is_compared_in_different_templates_is_told(demo, prompts, caplog):
    """A base model beside its chat model: what differs may be the template alone."""
    chat = sh.ships(demo, prompts, run=QUIET)
    paper = sh.ships(demo, prompts, template="paper", run=QUIET)
    sh.overlap({"one": chat, "other": chat}, top=2)
    assert not caplog.records
    sh.overlap({"base": paper, "chat": chat}, top=2)
    assert "'base' in 'paper', 'chat' in 'chat'" in caplog.text
    caplog.clear()
    told = {**paper.provenance.prompts, "template": "chat", "system": "be terse"}
    terse = replace(paper, provenance=replace(paper.provenance, prompts=told))
    sh.overlap({"plain": chat, "terse": terse}, top=2)
    assert "'terse' in 'chat' with system prompt 'be terse'" in caplog.text


def test_the_reference_of_mean_ablation_has_that_of_the_prompts(demo, prompts):
    reference = sh.load_prompts("demo/benign", limit=4)
    batch = encode(demo, prompts, "auto")
    by_default, chat, direct = (
        sh.MeanAblation(reference, template).prepare(demo, batch).mean
        for template in (None, "chat", "direct")
    )
    assert (by_default == chat).all()
    assert not (by_default == direct).all()


def test_prompts_may_be_a_source(demo):
    listed = sh.ships(demo, sh.load_prompts("demo/benign"), run=QUIET)
    named = sh.ships(demo, "demo/benign", run=QUIET)
    assert (listed.values == named.values).all()
    assert listed.provenance.prompts == named.provenance.prompts
    mean = sh.MeanAblation("demo/benign")
    assert mean == sh.MeanAblation(sh.load_prompts("demo/benign"))
    with pytest.raises(sh.SafeheadError, match="put a single prompt in brackets"):
        sh.ships(demo, "how do i bend a kite", run=QUIET)
    for text in ("how " * 100, "how do i bend a kite in ten easy steps"):
        with pytest.raises(sh.SafeheadError, match="is one text: put a single prompt in brackets"):
            sh.ships(demo, text, run=QUIET)
    with pytest.raises(sh.SafeheadError, match="reference='bend it' is one text"):
        sh.MeanAblation("bend it")


def test_prompts_may_be_a_path(demo, tmp_path):
    (tmp_path / "my prompts.txt").write_text("how do i bend a kite\n")
    for source in (tmp_path / "my prompts.txt", str(tmp_path / "my prompts.txt")):
        found = sh.ships(demo, source, run=QUIET)
        assert found.provenance.prompts["prompt_count"] == 1
    with pytest.raises(
        sh.SafeheadError, match=r"taken for a source.*no prompt file .*for a column"
    ):
        sh.ships(demo, Path("nowhere.txt"), run=QUIET)
