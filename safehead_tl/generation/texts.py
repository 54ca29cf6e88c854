"""`generate`: what a model says, with heads ablated or without, kept prompt by prompt."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pandas as pd

from safehead_tl.ablations import Ablation, resolve_ablation
from safehead_tl.generation.batched import (
    ENDED,
    Row,
    decode,
    fitting_rows,
    generate_fitted,
    room_behind,
)
from safehead_tl.generation.decoding import Decoding
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.models import (
    Model,
    check_model,
    describe,
    end_tokens,
    single_thread_if_tiny,
)
from safehead_tl.prompts import Prompts, Template, encode
from safehead_tl.results import Provenance
from safehead_tl.scan import Passes, Run, check_run, even_slices, progress_bar

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
        run: how it runs; `evaluate` keeps what it generates in a `run_dir`, this does not.

    Raises:
        SafeheadError: for arguments that cannot be used, or texts longer than the context.

    Example:
        >>> model = sh.load_model("demo")
        >>> told = {"max_new_tokens": 16}
        >>> sh.generate(model, ["how do i bend a crobe"], **told).texts
        (('sorry , i cannot help with that .',),)
        >>> sh.generate(model, ["how do i bend a crobe"], ["L1H3", "L2H6"], **told).texts
        (('bend the crobe with a clamp , then let it rest .',),)
    """
    check_model(model)
    check_run(run, keeping_nothing="generate")
    started = time.perf_counter()
    chosen = parse_heads(heads, model.cfg.n_layers, model.cfg.n_heads)
    batch = encode(model, prompts, template)
    decoding = Decoding(max_new_tokens, top_k, temperature, samples, seed)
    decoding = decoding.fitted(room_behind(model, batch))
    passes = Passes(fitting_rows(model, batch, decoding, run))
    resolved = resolve_ablation(ablation)
    prepared = resolved.prepare(model, batch) if chosen else None
    rows = [
        Row(0, prompt, sample) for prompt in range(len(batch.prompts)) for sample in range(samples)
    ]
    texts, lengths, ended, spent = list[str](), list[int](), list[bool](), 0
    ends = set(end_tokens(model))
    with (
        single_thread_if_tiny(model),
        progress_bar(run, len(rows), "generating", "text") as count,
    ):
        for some in even_slices(len(rows), passes.rows):
            new = generate_fitted(model, batch, rows[some], decoding, (chosen,), prepared, passes)
            own = [[token for token in row if token != ENDED] for row in new.tolist()]
            texts += decode(model, new)
            lengths += [len(row) for row in own]
            ended += [row[-1] in ends for row in own]
            spent += len(own) * (batch.tokens.shape[1] + new.shape[1] - 1)
            count(some.stop - some.start)
    starts = range(0, len(rows), samples)
    return Generations(
        prompts=batch.prompts,
        texts=tuple(tuple(texts[start : start + samples]) for start in starts),
        tokens=tuple(tuple(lengths[start : start + samples]) for start in starts),
        ended=tuple(tuple(ended[start : start + samples]) for start in starts),
        heads=chosen,
        provenance=Provenance.now(
            model=describe(model),
            ablation={"name": "none", "label": "nothing"}
            if prepared is None
            else prepared.describe(),
            prompts=batch.describe(),
            settings={"decoding": decoding.describe()},
            seconds=time.perf_counter() - started,
            forward_passes=spent / batch.tokens.shape[1],
        ),
    )
