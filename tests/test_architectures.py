"""The parity table of docs/architectures.md: computed here, and compared with what is there.

`python tests/test_architectures.py` writes it anew (on transformer-lens 3.9, which has both kinds).
"""

import inspect
import os
import re
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import independent
import safehead_tl as sh
from families import FAMILIES, QUIET, ROOT, HookedTransformer, make_checkpoint
from safehead_tl.ablations.hooks import group_hooks
from safehead_tl.ablations.names import resolve_ablation
from safehead_tl.generation.batched import generate_greedy
from safehead_tl.prompts.tokens import encode

PAGE = ROOT / "docs" / "architectures.md"
HEADS = tuple(map(sh.Head.parse, ("L0H1", "L1H0", "L1H3", "L2H2")))
PROMPTS = [
    "explain how to bend a kite",
    "how do i lift a boat",
    "please tell me how to mend a vosk",
]
ABLATIONS = {"UA": "undifferentiated", "SC": "scaling", "zero": "zero", "mean": "mean"}
COLUMNS = [*ABLATIONS, "Ships", "batched", "cache"]
FINE_TUNE = "llama-fine-tune"
"""Other weights in the architecture of the row above, as `weights=` loads Vicuna's."""
NAMES = ["llama", FINE_TUNE, *(name for name in FAMILIES if name != "llama")]
KINDS = {"hooked": "HookedTransformer", "bridge": "TransformerBridge"}


def log_probs(model, batch, group, ablation):
    """Through what a user has: whole passes under `ablated`."""
    prepared = ablation.prepare(model, batch)
    hooks = group_hooks(model, group, prepared)
    positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        if hasattr(model, "original_model"):
            told = {"attention_mask": batch.mask, "position_ids": positions}
            known = inspect.signature(model.original_model.forward).parameters
            told = {key: value for key, value in told.items() if key in known}
            logits = model.original_model(batch.tokens, **told).logits
        else:
            logits = model(batch.tokens, attention_mask=batch.mask)
    return logits[:, -1].double().log_softmax(-1)


def fine_tune(path):
    """A checkpoint beside another, of the same architecture and with other weights."""
    tuned = path.parent / FINE_TUNE
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(path)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tuned)
    AutoTokenizer.from_pretrained(path).save_pretrained(tuned)
    return tuned


def load(path, backend):
    if path.name == FINE_TUNE:
        return sh.load_model(path.parent / "llama", weights=path, backend=backend)
    return sh.load_model(path, backend=backend)


def row(path, backend):
    """For each column: exact or not."""
    model = load(path, backend)
    plain = AutoModelForCausalLM.from_pretrained(path).eval()
    batch = encode(model, PROMPTS, "paper")

    def theirs(kind, heads):
        if kind == "mean":
            logits = independent.logits_with_means(plain, batch.tokens, batch.mask, heads)
        else:
            logits = independent.logits(plain, batch.tokens, batch.mask, kind, heads)
        return logits[:, -1].double().log_softmax(-1)

    def agrees(kind):
        ablation = sh.MeanAblation() if kind == "mean" else resolve_ablation(kind)
        ours, expected = log_probs(model, batch, HEADS, ablation), theirs(kind, HEADS)
        moved = (expected - theirs(None, ())).abs().max() > 1e-2
        return moved and torch.allclose(ours, expected, atol=1e-4)

    told = {"template": "paper", "run": QUIET}
    scores = sh.ships(model, PROMPTS, **told).per_prompt

    def ships_agree():
        original = theirs(None, ())
        found = [
            torch.allclose(
                scores[:, *head],
                independent.divergence(original, theirs("undifferentiated", [head])),
                atol=1e-5,
            )
            for head in HEADS
        ]
        return all(found)

    def batched_agrees():
        singles = [sh.ships(model, [prompt], **told).per_prompt[0] for prompt in PROMPTS]
        return torch.allclose(torch.stack(singles), scores, atol=1e-5)

    def cache_agrees():
        with sh.ablated(model, HEADS):
            return generate_greedy(model, batch, 6) == generate_greedy(
                model, batch, 6, use_cache=False
            )

    checks = {name: lambda kind=kind: agrees(kind) for name, kind in ABLATIONS.items()}
    checks |= {"Ships": ships_agree, "batched": batched_agrees, "cache": cache_agrees}
    return ["exact" if checks[column]() else "WRONG" for column in COLUMNS]


def cells(path, backend):
    """A row's cells, and why it is refused if it is."""
    try:
        return [*row(path, backend), ""]
    except sh.SafeheadError as error:
        why = str(error).replace(str(path), "it").split(". ")[0].split(": Error")[0]
        return [*["refused"] * len(COLUMNS), " ".join(why.replace("|", "/").split())]


def lines(name, path):
    for backend, kind in KINDS.items():
        if backend == "bridge" or HookedTransformer is not None:
            yield f"| {name} | {kind} | {' | '.join(cells(path, backend))} |"


def weights_line(name, path, folder):
    """Ablations written into weights, opened again without hooks, against the plain model."""
    plain = AutoModelForCausalLM.from_pretrained(path).eval()
    batch = encode(load(path, "bridge"), PROMPTS, "paper")
    tokens, mask = batch.tokens, batch.mask
    cells, reasons = [], []
    for kind in ABLATIONS.values():
        told = {"prompts": PROMPTS, "template": "paper", "overwrite": True}
        try:
            sh.export(path, HEADS, folder / "out", ablation=kind, **told)
        except sh.SafeheadError as error:
            cells.append("refused")
            reasons.append(str(error).partition(": ")[2].replace("model.layers.0.", ""))
            continue
        if kind == "mean":
            expected = independent.logits_with_means(plain, tokens, mask, HEADS)
        else:
            expected = independent.logits(plain, tokens, mask, kind, HEADS)
        written = AutoModelForCausalLM.from_pretrained(folder / "out").eval()
        found = independent.logits(written, tokens, mask)
        same = torch.allclose(found[:, -1], expected[:, -1], atol=1e-4)
        cells.append("exact" if same else "WRONG")
    return f"| {name} | {' | '.join(cells)} | {'; '.join(reasons)} |"


@pytest.fixture
def path(checkpoint, name):
    return fine_tune(checkpoint("llama")) if name == FINE_TUNE else checkpoint(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_weights_can_express(path, name, tmp_path):
    line = weights_line(name, path, tmp_path)
    assert "WRONG" not in line
    assert line in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_is_measured(path, name):
    page = PAGE.read_text(encoding="utf-8")
    for line in lines(name, path):
        assert "WRONG" not in line
        assert line in page


def test_the_page_has_these_architectures_and_no_others():
    names = re.findall(r"^\| (\S+) \| TransformerBridge", PAGE.read_text(encoding="utf-8"), re.M)
    assert names == NAMES


def main(folder):
    """Writes the tables into the page."""
    made = {name: make_checkpoint(name, folder) for name in FAMILIES}
    paths = {name: made.get(name) or fine_tune(made["llama"]) for name in NAMES}
    write(
        "table",
        ["architecture", "loaded as", *COLUMNS, "why not"],
        [line for name, path in paths.items() for line in lines(name, path)],
    )
    write(
        "weights",
        ["architecture", *ABLATIONS, "why not"],
        [weights_line(name, path, folder) for name, path in paths.items()],
    )


def write(mark, titles, body):
    head = f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}\n"
    before, _, after = PAGE.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _, _, after = after.partition("<!-- end -->\n")
    table = head + "\n".join(body) + "\n"
    page = f"{before}<!-- {mark} -->\n{table}<!-- end -->\n{after}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    import tempfile

    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
