"""What must not change a scan: company, padding, memory, order, a kill. On models of every kind."""

import dataclasses
import tempfile
from contextlib import suppress
from unittest.mock import patch

import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st

import safehead_tl as sh
from families import QUIET
from safehead_tl.prompts import encode
from safehead_tl.scan.run_directory import RunDirectory
from strategies import cases, memory, tried


def close(found, expected):
    """Whether scores agree wherever both are; a short list may be another by a rounding error."""
    both = ~(found.isnan() | expected.isnan())
    return both.any() and torch.allclose(found[both], expected[both], rtol=1e-3, atol=2e-5)


def alone(scan, whole, case, data):
    """One prompt scanned by itself."""
    place = data.draw(st.integers(0, len(case.prompts) - 1), "place")
    return scan(case.prompts[place : place + 1]), whole[place : place + 1]


def permuted(scan, whole, case, data):
    order = data.draw(st.permutations(range(len(case.prompts))), "order")
    return scan([case.prompts[place] for place in order]), whole[order]


def padded(scan, whole, case, data):
    """More columns at the left, with any tokens in them."""
    columns, seed = data.draw(st.integers(1, 20), "columns"), data.draw(st.integers(0, 9), "seed")

    def wider(model, *told):
        batch = encode(model, *told)
        drawn = torch.Generator().manual_seed(seed)
        shape = (len(batch.prompts), columns)
        left = torch.randint(model.cfg.d_vocab, shape, generator=drawn)
        return dataclasses.replace(
            batch,
            tokens=torch.cat([left, batch.tokens], 1),
            mask=torch.cat([torch.zeros_like(left), batch.mask], 1),
        )

    with patch("safehead_tl.scan.search.encode", wider):
        return scan(), whole


def cut(scan, whole, case, data):
    how = data.draw(memory(), "run")
    found, refused = tried(lambda: scan(run=how))
    assert not refused or "is too little" in refused
    return whole if refused else found, whole


@given(case=cases(), data=st.data())
@settings(max_examples=2 * settings.default.max_examples)
def test_scores_are_the_same_alone_in_any_order_padded_or_cut(opened, case, data):
    model = opened(*case.kind)

    def scan(prompts=case.prompts, run=QUIET):
        return sh.ships(model, prompts, run=run, **case.told).per_prompt

    whole, refused = tried(scan)
    if refused:
        event(f"refused: {refused}")
        return
    for change in (alone, permuted, padded, cut):
        assert close(*change(scan, whole, case, data)), change.__name__


@given(case=cases(), stop=st.integers(0, 14), data=st.data())
def test_interrupted_and_resumed_is_the_same_to_the_bit(opened, case, stop, data):
    model = opened(*case.kind)
    measure = data.draw(st.sampled_from([sh.ships, sh.generalized_ships, sh.sahara]), "measure")
    told = dict(case.told)
    if measure is sh.sahara:
        told["size"] = 1 if told["candidates"] and len(told["candidates"]) == 1 else 2
        del told["given"]
    how = data.draw(memory(), "run")

    def scan(run):
        found = measure(model, case.prompts, run=run, **told)
        steps = found.steps if measure is sh.sahara else [found]
        return [step.values if step.per_prompt is None else step.per_prompt for step in steps]

    whole, refused = tried(lambda: scan(how))
    if refused:
        event(f"refused: {refused}")
        return
    put, kept = RunDirectory.put, []

    def interrupted(self, name, *piece):
        if len(kept) == stop:
            raise KeyboardInterrupt
        kept.append(name)
        put(self, name, *piece)

    with tempfile.TemporaryDirectory() as folder, patch("os.fsync"):
        directory = dataclasses.replace(how, run_dir=f"{folder}/run")
        with patch.object(RunDirectory, "put", interrupted), suppress(KeyboardInterrupt):
            scan(directory)
        resumed = scan(directory)
    for one, two in zip(resumed, whole, strict=True):
        assert torch.equal(one.nan_to_num(-1), two.nan_to_num(-1))
