"""How a run runs is said once, and changes nothing but the last digits."""

import inspect

import pytest
import torch
from jaxtyping import TypeCheckError

import safehead_tl as sh
from families import QUIET
from safehead_tl.generation.batched import fitting_rows
from safehead_tl.generation.decoding import Decoding
from safehead_tl.prompts.tokens import encode

FIELDS = set(inspect.signature(sh.Run).parameters)


@pytest.mark.parametrize("name", sorted(sh.__all__))
def test_no_function_repeats_what_a_run_says(name):
    """`max_rows` of a judge is of the judge's own model."""
    public = getattr(sh, name)
    if inspect.isfunction(public):
        assert not FIELDS & set(inspect.signature(public).parameters)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_rows": 0}, "max_rows=0 leaves no room"),
        ({"max_rows": True}, "max_rows=True leaves no room"),
        ({"max_bytes": "much"}, "'much' is no amount of memory"),
    ],
)
def test_what_a_run_cannot_be(wrong, message):
    with pytest.raises(sh.SafeheadError, match=message):
        sh.Run(**wrong)


def test_it_shows_what_was_said():
    assert repr(sh.Run()) == "Run()"
    assert repr(sh.Run(run_dir="a", progress=False)) == "Run(run_dir='a', progress=False)"


def test_something_else_is_no_run(demo, prompts):
    for wrong in ("run-1", {"max_rows": 3}):
        with pytest.raises((sh.SafeheadError, TypeCheckError), match=r"give a Run|'run'"):
            sh.ships(demo, prompts, run=wrong)


def test_two_passes_leave_no_pieces(demo, prompts, tmp_path):
    kept = sh.Run(run_dir=tmp_path / "run")
    with pytest.raises(sh.SafeheadError, match="last_states has no pieces to keep"):
        sh.last_states(demo, prompts, "L1H3", run=kept)
    assert not (tmp_path / "run").exists()


def test_memory_is_heeded_where_texts_are_generated(demo, harmful):
    batch, decoding = encode(demo, harmful, "auto"), Decoding(16)
    free = fitting_rows(demo, batch, decoding, sh.Run())
    few = fitting_rows(demo, batch, decoding, sh.Run(max_bytes="1MB"))
    fewer = fitting_rows(demo, batch, decoding, sh.Run(max_bytes="500kB"))
    assert 1 <= fewer < few < free
    assert fitting_rows(demo, batch, decoding, sh.Run(max_rows=7)) == 7
    assert fitting_rows(demo, batch, decoding, sh.Run(max_bytes="1MB", max_rows=1)) == 1
    assert fitting_rows(demo, batch, decoding, sh.Run(max_bytes="500kB", max_rows=999)) == fewer
    with pytest.raises(sh.SafeheadError, match="max_bytes=1kB is too little: a text of 15 tokens"):
        sh.generate(demo, harmful, run=sh.Run(max_bytes="1kB"), max_new_tokens=16)
    told = {"max_new_tokens": 16}
    some = sh.generate(demo, harmful[:8], run=sh.Run(max_bytes="500kB", progress=False), **told)
    assert some.texts == sh.generate(demo, harmful[:8], run=QUIET, **told).texts


def test_a_report_goes_on_in_a_directory(demo, harmful, tmp_path):
    run = sh.Run(run_dir=tmp_path / "run", progress=False)
    told = {"top": 1, "shown": 1, "max_new_tokens": 0, "run": run}
    sh.report(demo, harmful[:3], tmp_path / "one.html", **told)
    assert list((tmp_path / "run" / "pieces").iterdir())
    scores = sh.ships(demo, harmful[:3], run=run)
    with pytest.raises(sh.SafeheadError, match="report with scores= has no pieces to keep"):
        sh.report(demo, harmful[:3], tmp_path / "two.html", scores=scores, **told)
    assert torch.equal(scores.values, sh.ships(demo, harmful[:3], run=QUIET).values)
