"""Each prompt's own heads, against every prompt answered by itself."""

import dataclasses

import pytest
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.evaluation.controls import draw_for_each
from safehead_tl.heads import own_group
from safehead_tl.prompts.tokens import encode

TOLD = {"template": "chat", "max_new_tokens": 12, "run": QUIET}


@pytest.fixture(scope="module")
def requests():
    return sh.load_prompts("demo/harmful", split="test")[:8]


@pytest.fixture(scope="module")
def scores(demo, requests):
    return sh.ships(demo, requests, template="chat", run=QUIET)


@pytest.fixture(scope="module")
def found(demo, requests, scores):
    return sh.evaluate(demo, requests, heads=scores.per_query(1), controls=3, **TOLD)


def by_hand(model, prompt, heads):
    """A greedy answer without batch, padding or cache, by the public `ablated`."""
    tokens, new = encode(model, [prompt], "chat").tokens, []
    with torch.no_grad(), sh.ablated(model, heads):
        while len(new) < TOLD["max_new_tokens"]:
            new.append(int(model(tokens)[0, -1].argmax()))
            if new[-1] == model.tokenizer.eos_token_id:
                break
            tokens = torch.cat([tokens, torch.tensor([[new[-1]]])], 1)
    return model.tokenizer.decode(new, skip_special_tokens=True)


def test_each_prompt_is_answered_with_its_own_heads_ablated(demo, requests, scores, found):
    highest = scores.per_prompt.flatten(1).argmax(1)
    own = tuple((sh.Head(*divmod(int(place), demo.cfg.n_heads)),) for place in highest)
    assert found.per_query == own
    assert len(set(own)) == 2, "or one head for all would do"
    for variant, groups in ((1, own), (2, found.controls[0])):
        texts = [by_hand(demo, *pair) for pair in zip(requests, groups, strict=True)]
        assert [text for (text,) in found.harmful.texts[variant]] == texts
    one_for_all = sh.generate(demo, requests, own[0], **TOLD).texts
    assert one_for_all != found.harmful.texts[1]
    frame = found.responses().query("condition.str.startswith('ablated')")
    assert list(frame["heads"]) == [str(head) for (head,) in own]


def test_divergence_is_ships_of_the_own_head(scores, found):
    highest = scores.per_prompt.flatten(1).amax(1).double()
    assert torch.allclose(found.harmful.divergence[1].double(), highest, atol=1e-5)
    assert found.divergence("harmful")["ablated"] == pytest.approx(highest.mean().item(), abs=1e-5)


def test_which_heads_were_chosen_is_counted_and_said(found):
    counts = {head: sum(head in own for own in found.per_query) for head in found.heads}
    assert sum(counts.values()) == 8
    assert dict(found.chosen().top(2)) == {head: count / 8 for head, count in counts.items()}
    note = found.notes()[1]
    assert (
        "Each of the 8 prompts judges the heads that it chose itself, its highest by ships" in note
    )
    assert all(f"{head} by {count}" in note for head, count in counts.items())
    assert found.provenance.settings["chosen_on"] == {"harmful": 8}
    assert found.provenance.settings["per_query"]["template"] == "chat"
    header = found.figure().layout.title.text.replace("<br>", " ")
    assert "How the model answers with each prompt's own highest head ablated" in header
    assert "95 %: " in found.chosen().heatmap().data[0].text[1][3]
    assert "each prompt's own highest head ablated" in repr(found)


def test_a_result_is_kept_whole(found, tmp_path):
    found.save(tmp_path / "e.safetensors")
    again = sh.Evaluation.load(tmp_path / "e.safetensors")
    assert again.to_dict() == found.to_dict()
    assert (again.per_query, again.controls) == (found.per_query, found.controls)
    assert again.responses().equals(found.responses())


def test_heads_go_with_their_prompts_wherever_these_stand(demo, requests, scores, found):
    turned = requests[5:1:-1]
    some = sh.evaluate(demo, turned, heads=scores.per_query(), controls=0, **TOLD)
    assert some.per_query == found.per_query[5:1:-1]
    assert some.harmful.texts[1] == found.harmful.texts[1][5:1:-1]


def test_controls_are_drawn_for_each_prompt_by_itself():
    groups = [(sh.Head(0, 1), sh.Head(2, 0))] * 6 + [(sh.Head(1, 3), sh.Head(1, 4))] * 6
    drawn = draw_for_each(groups, 4, 8, 10, seed=3)
    assert (len(drawn.sets), drawn.layers, drawn.possible) == (10, 1, 15)
    for control in drawn.sets:
        for own, group in zip(groups, control, strict=True):
            assert sorted(head.layer for head in group) == sorted(head.layer for head in own)
            assert not set(group) & set(own)
    for prompt in range(12):
        assert len({own_group(control, prompt) for control in drawn.sets}) == 10
    assert len(set(drawn.sets[0][:6])) > 1, "the same heads, but sets of their own"
    assert drawn == draw_for_each(groups, 4, 8, 10, seed=3)
    narrow = draw_for_each([(sh.Head(0, 0),)] * 4, 2, 4, 20, seed=0)
    assert (len(narrow.sets), narrow.layers) == (7, 2), "all there are"
    firsts = {control[0] for control in narrow.sets}
    assert firsts == {control[1] for control in narrow.sets}
    assert [c[0] for c in narrow.sets] != [c[1] for c in narrow.sets], "in orders of their own"


def test_a_bridge_with_padding_answers_the_same(demo, requests, scores, found):
    bridge = sh.load_model("demo", backend="bridge")
    own = scores.per_query(1)
    told = {**TOLD, "run": dataclasses.replace(QUIET, max_rows=3)}
    other = sh.evaluate(bridge, requests[:4], heads=own, controls=0, **told)
    assert other.harmful.texts[:2] == tuple(texts[:4] for texts in found.harmful.texts[:2])


def test_a_run_directory_tells_choices_apart(demo, requests, scores, tmp_path):
    kept = {**TOLD, "run": dataclasses.replace(QUIET, run_dir=tmp_path / "run"), "controls": 0}
    first = sh.evaluate(demo, requests, heads=scores.per_query(1), **kept)
    again = sh.evaluate(demo, requests, heads=scores.per_query(1), **kept)
    assert again.harmful.texts == first.harmful.texts
    assert torch.equal(again.harmful.divergence, first.harmful.divergence)
    with pytest.raises(sh.SafeheadError, match="holds another run"):
        sh.evaluate(demo, requests, heads=scores.per_query(2), **kept)


def test_what_cannot_be_is_refused(demo, requests, scores):
    with pytest.raises(sh.SafeheadError, match="harmless prompts have no heads of their own"):
        sh.evaluate(demo, requests, heads=scores.per_query(), harmless=requests, **TOLD)
    with pytest.raises(sh.SafeheadError, match="'bend it' was not scored"):
        sh.evaluate(demo, [requests[0], "bend it"], heads=scores.per_query(), **TOLD)
    with pytest.raises(sh.SafeheadError, match=r"per_query\(33\): ask for 1 to 32 heads"):
        scores.per_query(33)
    with pytest.raises(sh.SafeheadError, match="one score for all prompts"):
        dataclasses.replace(scores, per_prompt=None).per_query()
    screened = sh.ships(demo, requests, screen=4, template="chat", run=QUIET)
    with pytest.raises(sh.SafeheadError, match="may not be on the short list"):
        screened.per_query()
    plain = sh.evaluate(demo, requests[:1], controls=0, **TOLD)
    with pytest.raises(sh.SafeheadError, match="no prompt chose its own heads"):
        plain.chosen()
