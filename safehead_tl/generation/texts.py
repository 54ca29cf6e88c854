"""`generate`: what a model says, with heads ablated or without, kept prompt by prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from safehead_tl.ablations import Ablation
from safehead_tl.generation.batched import Row
from safehead_tl.generation.decoding import Decoding
from safehead_tl.generation.saying import Saying
from safehead_tl.heads import Head, HeadsLike, parse_heads, variant_names
from safehead_tl.models import Model, check_model, single_thread_if_tiny
from safehead_tl.prompts import Prompts, Template
from safehead_tl.results import Provenance
from safehead_tl.scan import Run, anywhere

SHOWN = 60
"""Characters of the first text in a `repr`."""


@dataclass(frozen=True)
class Generations:
    """What a model said.

    Attributes:
        prompts: what was asked, without template.
        texts: the continuations, by prompt and sample, without special tokens.
        tokens: how many tokens each has, its end token included.
        ended: whether each ended by itself, and not at `max_new_tokens`.
        heads: the heads that were ablated.
        provenance: what it was computed from.
    """

    prompts: tuple[str, ...]
    texts: tuple[tuple[str, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    ended: tuple[tuple[bool, ...], ...]
    heads: tuple[Head, ...]
    provenance: Provenance

    def __repr__(self) -> str:
        ablated = f", {' '.join(map(str, self.heads))} ablated" if self.heads else ""
        count, first = len(self.prompts) * len(self.texts[0]), self.texts[0][0]
        first = first if len(first) < SHOWN else f"{first[:SHOWN]}…"
        return f"<Generations: texts: {count}, prompts: {len(self.prompts)}{ablated}; {first!r}>"

    def to_frame(self) -> pd.DataFrame:
        """One text a row: `prompt, sample, text, response, tokens, ended`."""
        return pd.DataFrame(
            [
                {
                    "prompt": prompt,
                    "sample": sample,
                    "text": self.prompts[prompt],
                    "response": response,
                    "tokens": self.tokens[prompt][sample],
                    "ended": self.ended[prompt][sample],
                }
                for prompt, samples in enumerate(self.texts)
                for sample, response in enumerate(samples)
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain values, texts included."""
        return {
            "heads": [str(head) for head in self.heads],
            "prompts": list(self.prompts),
            "texts": [list(samples) for samples in self.texts],
            "ended": [list(samples) for samples in self.ended],
            "provenance": self.provenance.to_dict(),
        }


@anywhere
def generate(
    model: Model,
    prompts: Prompts,
    heads: HeadsLike = (),
    *,
    ablation: str | Ablation = "undifferentiated",
    template: Template = "auto",
    max_new_tokens: int | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    run: Run = Run(),
) -> Generations:
    """Continues prompts, with heads ablated or as the model is.

    Batched, left-padded with an explicit mask, and with a KV cache; greedy texts are those of one
    prompt at a time.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: the prompts, without template: texts, or a source that `load_prompts` reads.
        heads: the heads to ablate, in any spelling; none: the model as it is.
        ablation: an ablation or its name.
        template: as in `ships`.
        max_new_tokens: stop after so many tokens, or at an end-of-sequence token; by default after
            128, or as many as fit into the model's context.
        top_k: draw each token from so many; `None`: the most likely one.
        temperature: for `top_k`.
        samples: texts for each prompt, with `top_k`.
        seed: of the draws; a text depends on it and on its prompt's place, not on batches.
        run: how it runs; a `run_dir` keeps texts. With `on=Server(...)` a server answers.

    Raises:
        SafeheadError: for arguments that cannot be used, texts longer than the context, or a server
            that serves something else.

    Example:
        >>> model = sh.load_model("demo")
        >>> told = {"max_new_tokens": 16}
        >>> sh.generate(model, ["how do i bend a crobe"], **told).texts
        (('sorry , i cannot help with that .',),)
        >>> sh.generate(model, ["how do i bend a crobe"], ["L1H3", "L2H6"], **told).texts
        (('bend the crobe with a clamp , then let it rest .',),)
    """
    check_model(model)
    chosen = parse_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    with single_thread_if_tiny(model):
        saying = Saying.begin(
            model,
            {"asked": prompts},
            template,
            ablation,
            Decoding(max_new_tokens, top_k, temperature, samples, seed),
            run=run,
            identity={"measure": "generate", "heads": variant_names(chosen)},
        )
        asked = saying.batches["asked"].prompts
        rows = [Row(0, prompt, sample) for prompt in range(len(asked)) for sample in range(samples)]
        replies = saying.say("asked", rows, (chosen,))
        provenance = saying.provenance("asked", {})
    if not chosen:
        provenance = replace(provenance, ablation={"name": "none", "label": "nothing"})
    texts, tokens, ended = (
        tuple(tuple(column[start : start + samples]) for start in range(0, len(rows), samples))
        for column in zip(*replies, strict=True)
    )
    return Generations(asked, texts, tokens, ended, chosen, provenance)
