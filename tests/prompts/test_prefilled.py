"""Answers that begin with a given text, in every template."""

from dataclasses import dataclass

import pytest
import torch

import safehead_tl as sh
from families import QUIET
from safehead_tl.prompts.tokens import encode

BEGUN = "bend the"
TEMPLATES = ("auto", "chat", "paper", "direct", "please {query} a", sh.ChatTemplate())


def rows(batch):
    return [ids[mask.bool()].tolist() for ids, mask in zip(batch.tokens, batch.mask, strict=True)]


@pytest.mark.parametrize("template", TEMPLATES, ids=str)
def test_its_tokens_stand_behind_those_of_the_prompt(demo, prompts, template):
    begun = demo.tokenizer(BEGUN, add_special_tokens=False)["input_ids"]
    plain = encode(demo, prompts, template)
    found = encode(demo, prompts, sh.Prefilled(BEGUN, template))
    assert rows(found) == [[*ids, *begun] for ids in rows(plain)]
    told = found.describe()
    assert told["prefix"] == BEGUN
    assert told["template"] == plain.describe()["template"] != "auto"
    assert told["prompts_hash"] == plain.describe()["prompts_hash"]
    assert rows(encode(demo, prompts, found.template)) == rows(found)


@pytest.mark.parametrize("backend", ["auto", "bridge"])
def test_a_model_goes_on_from_it(checkpoint, prompts, backend):
    """Against a greedy loop over whole passes, and scores against those of the text written out."""
    model = sh.load_model(checkpoint("llama-grouped"), backend=backend)
    asked = sh.Prefilled(BEGUN, "paper")
    said = sh.generate(model, prompts, ["L1H2"], template=asked, max_new_tokens=4, run=QUIET)
    begun = model.tokenizer(BEGUN, add_special_tokens=False)["input_ids"]
    hooks = sh.ablation_hooks(model, "L1H2")
    for prompt, (text,) in zip(prompts, said.texts, strict=True):
        ids = [*rows(encode(model, [prompt], "paper"))[0], *begun]
        new = list[int]()
        with torch.no_grad():
            while len(new) < 4 and model.tokenizer.eos_token_id not in new:
                logits = model.run_with_hooks(torch.tensor([[*ids, *new]]), fwd_hooks=hooks)
                new.append(int(logits[0, -1].argmax()))
        assert text == model.tokenizer.decode(new, skip_special_tokens=True)
    found = sh.ships(model, prompts, template=asked, run=QUIET)
    written = "## Query:{query}\n## Answer: " + BEGUN  # words: nothing merges at the seam
    assert torch.equal(found.values, sh.ships(model, prompts, template=written, run=QUIET).values)
    assert f"answers begun with '{BEGUN}'" in found.heatmap().layout.title.text.replace("<br>", " ")


@dataclass(frozen=True)
class Listener:
    """A judge that keeps what it is asked."""

    heard: list
    name: str = "listener"

    def judge(self, prompts, responses):
        self.heard.extend(responses)
        return [sh.Verdict(False, "") for _ in responses]

    def describe(self):
        return {"name": self.name}


def test_a_judge_sees_what_the_model_wrote(demo, harmful):
    judge = Listener([])
    told = {"template": sh.Prefilled(BEGUN), "max_new_tokens": 8, "run": QUIET}
    result = sh.evaluate(demo, harmful[:3], judge=judge, controls=0, **told)
    said = [text for (text,) in sh.generate(demo, harmful[:3], **told).texts]
    assert set(judge.heard) == set(said)
    assert not any(BEGUN in text for text in said)
    assert result.provenance.prompts["prefix"] == BEGUN


def test_what_cannot_begin_an_answer(demo, prompts):
    for text in ("", " ", "Xylophon"):
        with pytest.raises(sh.SafeheadError, match="does not know such words"):
            encode(demo, prompts, sh.Prefilled(text))
    with pytest.raises(sh.SafeheadError, match="tokens in its template"):
        encode(demo, prompts, sh.Prefilled("the " * 200))


def test_scans_with_and_without_are_told_apart(demo, prompts, caplog):
    plain = sh.ships(demo, prompts, run=QUIET)
    begun = sh.ships(demo, prompts, template=sh.Prefilled(BEGUN), run=QUIET)
    sh.overlap({"plain": plain, "begun": begun}, top=2)
    assert f"'begun' in 'chat' begun with '{BEGUN}'" in caplog.text


def test_the_reference_of_mean_ablation_begins_so_too(demo, prompts):
    batch = encode(demo, prompts, sh.Prefilled(BEGUN, "paper"))
    mean = sh.MeanAblation(prompts).prepare(demo, batch)
    written = "## Query:{query}\n## Answer: " + BEGUN
    assert torch.equal(mean.mean, sh.MeanAblation(prompts, written).prepare(demo, None).mean)
