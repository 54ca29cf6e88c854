"""What stands around a prompt by default: what the model expects, and never in silence."""

import inspect

import pytest

import safehead_tl as sh
from families import GOLDEN, QUIET

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


def test_a_model_without_one_is_asked_in_the_papers(bare, prompts):
    found = sh.ships(bare, prompts, run=QUIET)
    paper = sh.ships(bare, prompts, template="paper", run=QUIET)
    direct = sh.ships(bare, prompts, template="direct", run=QUIET)
    assert (found.values == paper.values).all()
    assert not (found.values == direct.values).all()
    assert found.provenance.prompts["template"] == "paper"
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


def test_the_reference_of_mean_ablation_has_it_too(demo):
    reference = sh.load_prompts("demo/benign", limit=4)
    by_default, chat, direct = (
        sh.MeanAblation(reference, template).prepare(demo, None).mean
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
