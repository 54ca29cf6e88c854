"""Exporting an ablated model as a Hugging Face checkpoint, verified against the hooks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from safehead_tl.ablations import Ablation, group_hooks, must_fire, resolve_ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.models import (
    Model,
    all_logits,
    checkpoint_directory,
    describe,
    dissect,
    hooked,
    hub_name,
    load_model,
    load_original,
    transformers_forward,
    without_bars,
)
from safehead_tl.prompts import PromptBatch, Prompts, Template, encode
from safehead_tl.results import Provenance
from safehead_tl.surgery.checkpoint import (
    Changes,
    Snapshot,
    largest_difference,
    write_card,
    write_checkpoint,
)
from safehead_tl.surgery.weights import ablate_weights, load_source
from safehead_tl.writing import new_directory

RANDOM_SEQUENCES = 4
RANDOM_TOKENS = 24
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Export:
    """A checkpoint with an ablation in its weights.

    Attributes:
        directory: where it is; opens with `AutoModelForCausalLM.from_pretrained`.
        heads: the heads that were ablated.
        changes: which parameters differ from the source's, and how many numbers in them.
        max_difference: largest difference between its logits and those of the model with hooks.
        provenance: where it came from, and what was done.
    """

    directory: Path
    heads: tuple[Head, ...]
    changes: Changes
    max_difference: float
    provenance: Provenance

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "directory": str(self.directory),
            "heads": [str(head) for head in self.heads],
            "changed_tensors": list(self.changes.tensors),
            "changed_parameters": self.changes.changed,
            "total_parameters": self.changes.total,
            "changed_share": self.changes.share,
            "max_difference": self.max_difference,
            "provenance": self.provenance.to_dict(),
        }


def export(
    source: str | Path,
    heads: HeadsLike,
    out: str | Path,
    *,
    ablation: str | Ablation = "undifferentiated",
    prompts: Prompts | None = None,
    template: Template = "auto",
    tolerance: float = TOLERANCE,
    device: torch.device | str | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes a Hugging Face checkpoint in which heads are ablated for good, without hooks.

    Uniform attention becomes queries of zero, which is exact also with biases, rotation, norms by
    head, sliding windows, soft-caps and sinks; scaling and zero ablation scale a head's columns of
    the output projection; the mean goes into that projection's bias, if there is one. Before it is
    called done, the written directory is loaded, and its logits are compared in float32 with those
    of the source under `ablated`, at every position.

    Args:
        source: `"demo"`, `"demo-base"`, a local Hugging Face directory, or a name on the hub.
        heads: the heads, in any spelling.
        out: the directory to write. The source's tokenizer and generation settings come along, the
            dtype of its weights is kept, and a model card and `config.json` say what was done.
        ablation: an ablation or its name. Mean ablation takes its mean over its own reference, or
            over `prompts`.
        prompts: what to compare logits on, as in `ships`; by default 4 times 24 random tokens.
        template: the text around them, as in `ships`.
        tolerance: the largest difference of logits that is let pass, in units of their root mean
            square if that is above 1.
        device: where the models run.
        overwrite: replace what `out` holds, if this toolkit wrote all of it.

    Returns:
        What was written, how many parameters changed, and the largest difference found.

    Raises:
        SafeheadError: if weights cannot express the ablation in this architecture (the message
            says why), if an edit of keys or values names half a KV group, if the written model
            differs from the hooked one (nothing is left behind then), or if `out` cannot be
            written.

    Example:
        >>> done = sh.export("demo", ["L1H3", "L2H6"], "ablated-demo")
        >>> print(done.changes)
        576 of 100,464 parameters (0.5733 %) in 2 tensors
    """
    started = time.perf_counter()
    resolved = resolve_ablation(ablation)
    with (
        checkpoint_directory(source) as local,
        new_directory(out, [local], overwrite=overwrite) as (target, folder),
    ):
        where = local if local is not None else hub_name(str(source))
        model = load_model(source, dtype="float32", device=device)
        chosen = parse_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
        if not chosen:
            raise SafeheadError("no heads were given to ablate")
        batch = _random_batch(model) if prompts is None else encode(model, prompts, template)
        prepared = resolved.prepare(model, None if prompts is None else batch)
        original = load_source(where)
        anatomy = dissect(original)
        modules = {anatomy.layers[head.layer].module for head in chosen}
        snapshot = Snapshot(original, modules)
        ablate_weights(original, anatomy, chosen, prepared)
        changes = snapshot.changes()
        expected, plain = _hooked_logits(model, batch, chosen, prepared)
        described, passes = describe(model), 2 * len(batch.prompts) + prepared.passes
        wanted_device = model.cfg.device
        del model
        done = {
            "what": "ablation",
            "source": str(source),
            "revision": described["revision"],
            "heads": [str(head) for head in chosen],
            "ablation": prepared.describe(),
            "changed_parameters": changes.changed,
            "total_parameters": changes.total,
        }
        found: dict[str, float] = {}

        def check(written: Path) -> Mapping[str, Any]:
            moved = largest_difference(expected, plain, batch.mask)
            found["difference"] = _difference(written, batch, expected, str(wanted_device))
            limit = tolerance * max(1.0, float(plain[batch.mask.bool()].pow(2).mean().sqrt()))
            if not found["difference"] <= limit:
                raise SafeheadError(
                    f"the weights do not do what the hooks do: logits differ by up to "
                    f"{found['difference']:.2g} (limit {limit:.2g}; the ablation itself "
                    f"moves them by up to {moved:.2g}). Nothing was written. Either this "
                    f"{type(original).__name__} has something that the edit does not know, or its "
                    f"dtype ({original.dtype}) is too coarse for the edit"
                )
            if not changes.changed or moved < 10 * found["difference"]:
                raise SafeheadError(
                    f"the ablation moves logits by {moved:.2g} and changes {changes.changed} "
                    f"parameters: too little to tell from rounding ({found['difference']:.2g}) "
                    "whether it is in the weights. Nothing was written"
                )
            return {**done, "largest_difference_of_logits": found["difference"], "moved_by": moved}

        def card(facts: Mapping[str, Any]) -> str:
            return _card(str(source), described["revision"], resolved, chosen, changes, facts)

        write_checkpoint(target, folder, original, where, done=done, card=card, check=check)
    settings = {"heads": done["heads"], "tolerance": tolerance, "changed": str(changes)}
    return Export(
        directory=target,
        heads=chosen,
        changes=changes,
        max_difference=found["difference"],
        provenance=Provenance.now(
            model=described,
            ablation=prepared.describe(),
            prompts=batch.describe(),
            settings=settings,
            seconds=time.perf_counter() - started,
            forward_passes=float(passes),
        ),
    )


def _random_batch(model: Model) -> PromptBatch:
    """Random tokens: they need no tokenizer, and reach more of the model than a sentence."""
    generator = torch.Generator().manual_seed(0)
    shape = (RANDOM_SEQUENCES, min(RANDOM_TOKENS, model.cfg.n_ctx))
    tokens = torch.randint(model.cfg.d_vocab, shape, generator=generator).to(model.cfg.device)
    names = tuple(f"random tokens {number}" for number in range(RANDOM_SEQUENCES))
    return PromptBatch(names, "direct", tokens, torch.ones_like(tokens))


@torch.no_grad()
def _hooked_logits(
    model: Model, batch: PromptBatch, heads: tuple[Head, ...], ablation: Ablation
) -> tuple[Tensor, Tensor]:
    """Logits with the heads ablated by hooks, and without."""
    plain = all_logits(model, batch.tokens, batch.mask)
    with must_fire(group_hooks(model, heads, ablation)) as hooks, hooked(model, hooks):
        return all_logits(model, batch.tokens, batch.mask), plain


@torch.no_grad()
@without_bars()
def _difference(written: Path, batch: PromptBatch, expected: Tensor, device: str) -> float:
    """How far the logits of a written checkpoint are from those expected."""
    model: PreTrainedModel = load_original(written, torch.float32)
    model.to(torch.device(device))  # type: ignore[arg-type]
    return largest_difference(
        transformers_forward(model, batch.tokens, batch.mask).logits, expected, batch.mask
    )


def _card(
    source: str,
    revision: str | None,
    ablation: Ablation,
    heads: tuple[Head, ...],
    changes: Changes,
    facts: Mapping[str, Any],
) -> str:
    named = ", ".join(map(str, heads))
    lines = [
        f"Ablated attention heads (layer and head counted from 0): {named}. What was done to them: "
        f"{ablation.label} (*On the Role of Attention Heads in Large Language Model Safety*, ICLR "
        "2025), written into the weights with safehead_tl.",
        f"Changed: {changes}: {', '.join(f'`{name}`' for name in changes.tensors)}.",
        "Verified: its logits equal those of the source with the same heads ablated by hooks to "
        f"{facts['largest_difference_of_logits']:.1e}; the ablation itself moves them by up to "
        f"{facts['moved_by']:.1e}.",
    ]
    return write_card(f"{Path(source).name}, {named} ablated", source, revision, lines, facts)
