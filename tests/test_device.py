"""Whatever runs a model runs on GPUs: on pretended ones, with the CPU's numbers, bit for bit."""

import dataclasses
import functools
import json
import re
import sys

import pytest
import torch
import transformers

import safehead_tl as sh
from families import QUIET, hooked_only
from pretend import PretendGpus
from safehead_tl.ablations import attention
from safehead_tl.scan.search import Search
from safehead_tl.views.widget import explore

FIRST = ("model.embed_tokens", "model.rotary_emb", "model.layers.0")
LAST = ("model.layers.1", "model.layers.2", "model.norm", "lm_head")
MAP = {**dict.fromkeys(FIRST, "cuda:0"), **dict.fromkeys(LAST, "cuda:1")}
KINDS = {
    "hooked": ({"backend": "hooked"}, {"backend": "hooked", "device": "cuda"}),
    "bridge": ({"backend": "bridge"}, {"backend": "bridge", "device": "cuda:1"}),
    "two": ({"device_map": "cpu"}, {"device_map": MAP}),
}
HEADS = ["L1H3", "L2H0"]
FEW = sh.Screening(top=1, first=2, budget=3, audit=1, blocks=2, points=1, probes=1)
ABLATIONS = [
    "undifferentiated", "scaling", "zero", "mean", sh.MeanOverHeads("q"),
    sh.UndifferentiatedAttention(1e-5), sh.UndifferentiatedAttention(1e-5, via="k"),
]  # fmt: skip


@pytest.fixture(scope="module")
def gpus():
    """GPUs with memory, of which 1 GiB is free."""
    told = {"mem_get_info": (2**30, 2**31), "memory_reserved": 0, "memory_allocated": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name, found in told.items():
            patch.setattr(torch.cuda, name, lambda device, found=found: found)
        patch.setattr(transformers.modeling_utils, "caching_allocator_warmup", lambda *_: None)
        yield PretendGpus()


@pytest.fixture(scope="module")
def models(gpus, checkpoint):
    """Loads a model twice: on the CPU and on GPUs."""

    @functools.cache
    def load(kind):
        with gpus:
            return [sh.load_model(checkpoint("llama-grouped"), **told) for told in KINDS[kind]]

    return load


def directly(model, prompts, path):
    tokens = model.to_tokens(prompts[0])
    with torch.no_grad(), sh.ablated(model, HEADS):
        inside = model(tokens)
    hooks = sh.ablation_hooks(model, HEADS, sh.UndifferentiatedAttention(1e-5, via="q"))
    return inside.cpu(), model.run_with_hooks(tokens, fwd_hooks=hooks).detach().cpu()


def screened(model, prompts, path):
    found = sh.ships(model, prompts, screen=FEW, given="L1H3", run=QUIET)
    assert found.screening.runs > 0
    return found


def log_odds(model, prompts, path):
    openings = sh.Openings((7, 11), (3, 20))
    told = {"openings": openings, "candidates": "L1H3", "screen": FEW, "run": QUIET}
    return [
        sh.refusal_log_odds(model, prompts, ablation=each, **told)
        for each in ("zero", sh.ResampleAblation(prompts[::-1], "mean"))
    ]


def interchange(model, prompts, path):
    openings = sh.Openings((7, 11), (3, 20))
    pairs = [prompts[:2], prompts[1:3]]
    try:
        return sh.interchange(model, *pairs, openings=openings, group=HEADS, run=QUIET)
    except sh.SafeheadError:  # whichever this random model refuses more
        return sh.interchange(model, *pairs[::-1], openings=openings, group=HEADS, run=QUIET)


def page(model, prompts, path):
    sh.report(model, prompts[:2], path / "page.html", top=1, max_new_tokens=3, run=QUIET)
    (text,) = re.findall(r'id="data">(.*?)</script>', (path / "page.html").read_text("utf-8"))
    return json.loads(text)


def explored(model, prompts, path):
    view = sh.explore(model, prompts[:2], max_new_tokens=3, run=QUIET)
    first, second = view.asked["columns"]
    columns = [first, {**second, "heads": HEADS}]
    view.asked = {**view.asked, "number": 1, "columns": columns, "shown": HEADS, "generate": True}
    return view.shown


RUNS = {
    "ships": lambda m, p, _: [
        sh.ships(m, p, candidates="L1H3", ablation=each, given="L0H1", run=QUIET)
        for each in ABLATIONS
    ],
    "ships-in-small-passes": lambda m, p, _: sh.ships(
        m, p, candidates=["L1H0", "L1H1"], run=sh.Run(None, 2, shared_prefix=False, progress=False)
    ),
    "ships-screened": screened,
    "log-odds": log_odds,
    "interchange": interchange,
    "generalized-ships": lambda m, p, _: sh.generalized_ships(m, p, rank=2, run=QUIET),
    "sahara": lambda m, p, _: sh.sahara(m, p, rank=2, size=2, candidates=HEADS, run=QUIET),
    "sahara-screened": lambda m, p, _: sh.sahara(m, p, rank=2, size=2, screen=FEW, run=QUIET),
    "last-states": lambda m, p, _: sh.last_states(m, p, HEADS, run=QUIET),
    "generate": lambda m, p, _: sh.generate(
        m, p, HEADS, top_k=3, samples=2, max_new_tokens=4, run=QUIET
    ),
    "evaluate": lambda m, p, _: sh.evaluate(
        m, p, heads=HEADS, controls=1, harmless=p, max_new_tokens=3, run=QUIET
    ),
    "concentration": lambda m, p, _: sh.concentration(
        m, p, {"mine": HEADS}, random_orders=1, max_new_tokens=3, run=QUIET
    ),
    "attention": lambda m, p, _: sh.attention(m, p[0], HEADS),
    "ablated": directly,
    "report": page,
    "explore": explored,
}


def leaves(value):
    """All that is found, without what it was found on."""
    if isinstance(value, sh.Provenance):
        return []
    if dataclasses.is_dataclass(value):
        value = [getattr(value, each.name) for each in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [leaf for each in value for leaf in leaves(each)]
    if isinstance(value, torch.Tensor):
        assert value.device.type == "cpu"
        return [(value.shape, value.numpy().tobytes())]
    return [value]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(pytest.param("hooked", name, marks=hooked_only) for name in RUNS),
        *(("bridge", name) for name in ("generate", "ablated")),
        *(("two", name) for name in RUNS if name not in ("log-odds", "interchange")),
    ],
)
def test_the_same_on_gpus(models, gpus, harmful, tmp_path, monkeypatch, kind, name):
    monkeypatch.setattr(explore, "_in_notebook", lambda: True)
    here, there = models(kind)
    expected = leaves(RUNS[name](here, harmful[:3], tmp_path))
    with gpus:
        assert next(there.parameters()).device.type == "cuda"
        assert leaves(RUNS[name](there, harmful[:3], tmp_path)) == expected
        assert gpus.waits


@pytest.mark.parametrize("name", ["log-odds", "interchange"])
def test_nearly_the_same_on_two(models, gpus, harmful, tmp_path, name):
    """Where layers are moved about, the whole vocabulary is unembedded: other last bits."""
    here, there = models("two")
    expected = RUNS[name](here, harmful[:3], tmp_path)
    with gpus:
        found = RUNS[name](there, harmful[:3], tmp_path)
    for one, two in zip(numbers(found), numbers(expected), strict=True):
        assert torch.allclose(one, two, atol=1e-5, equal_nan=True)


def numbers(found):
    """The scores in a result."""
    if isinstance(found, sh.Interchange):
        return [found.necessity.per_prompt, found.sufficiency.per_prompt, found.gap]
    return [scores.per_prompt for scores in found]


def test_exported_on_a_gpu(gpus, tmp_path):
    with gpus:
        done = sh.export("demo", HEADS, tmp_path / "there", device="cuda")
    again = sh.export("demo", HEADS, tmp_path / "here")
    assert gpus.waits
    here, there = (each.directory / "model.safetensors" for each in (again, done))
    assert here.read_bytes() == there.read_bytes()


def test_a_judge_on_a_gpu(gpus, checkpoint):
    name = "llama"
    told = {"tokenizer": checkpoint(name), "success_words": "ladder", "failure_words": "clock"}
    texts = ["bend a kite", "how do i lift a boat"]
    judge = sh.LlmJudge(str(checkpoint(name)), "{response}", **told)
    expected = judge.judge(texts, texts)
    with gpus:
        judge = sh.LlmJudge(str(checkpoint(name)), "{response}", device="cuda", **told)
        assert judge.judge(texts, texts) == expected
        assert gpus.waits


SLIPS = {
    "sum": lambda there, here: there + here,
    "mask that indexes": lambda there, here: there[here > 0],
    "mask that is assigned to": lambda there, here: there.__setitem__(here > 0, 0),
    "factory": lambda there, here: torch.where(torch.ones(3, dtype=torch.bool), there, 0),
    "list": lambda there, here: there * torch.tensor([1.0, 2.0, 3.0]),
    "two GPUs": lambda there, here: torch.stack([there, there.to("cuda:1")]),
    "view": lambda there, here: there[1:] @ here[1:],
    "numpy": lambda there, here: there.numpy(),
    "gradient": lambda there, here: (
        (there.requires_grad_() * 2).backward(here) or there.grad + here
    ),
}


@pytest.mark.parametrize("slip", SLIPS.values(), ids=SLIPS)
def test_slips_are_seen(gpus, slip):
    with gpus:
        here = torch.ones(3)
        there = here.to("cuda")
        assert ((there + there[0].cpu()).cpu() == 2).all()  # a single number may lie anywhere
        with pytest.raises((RuntimeError, TypeError)):
            slip(there, here)


def test_a_slip_in_a_scan_is_seen(gpus, harmful, monkeypatch):
    """A mask of heads that is left on the CPU."""
    monkeypatch.setattr(
        attention, "chosen_heads", lambda heads, *_, **__: heads.cpu()[:, :, None, None]
    )
    with gpus, pytest.raises(RuntimeError, match="which are not the same device"):
        sh.ships(sh.load_model("demo", device="cuda"), harmful[:2], run=QUIET)


@pytest.mark.parametrize(
    ("measure", "told", "kind", "per_piece", "per_scan"),
    [
        ("ships", {}, "bridge", 2, 4),
        ("generalized_ships", {"rank": 2}, "bridge", 2, 6),
        pytest.param("ships", {}, "hooked", 1, 13, marks=hooked_only),
    ],
)
def test_how_often_the_host_waits(
    models, gpus, harmful, monkeypatch, capsys, measure, told, kind, per_piece, per_scan
):
    """In pieces of all heads of a layer, and of one head each."""
    pieces, measured, found = [], Search._measured, []
    monkeypatch.setattr(Search, "_measured", lambda *args: pieces.append(0) or measured(*args))
    _, model = models(kind)
    for rows in (None, 4):
        pieces.clear()
        with gpus:
            run = sh.Run(None, rows, progress=False)
            getattr(sh, measure)(model, harmful[:4], run=run, **told)
        found.append((len(pieces), len(gpus.waits)))
    with capsys.disabled():
        for count, waits in found:
            sys.stdout.write(f"\n{measure}, {kind}: the host waits {waits} times in {count} pieces")
    assert found == [(count, per_piece * count + per_scan) for count in (3, 12)]
