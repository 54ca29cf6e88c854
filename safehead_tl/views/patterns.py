"""Where heads look on a prompt: their attention, beside what an ablation makes of it.

circuitsvis draws it. The page that it writes by itself loads from the network, repeats 1.3 MB of
script in each figure, leaves its element open and lets a token end the script; so only the
figure's data are taken from it.
"""

from __future__ import annotations

import html
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch
from circuitsvis.attention import attention_heads
from jaxtyping import Float
from torch import Tensor

from safehead_tl.ablations import Ablation, UndifferentiatedAttention
from safehead_tl.errors import SafeheadError
from safehead_tl.figures import ablation_words, head_words
from safehead_tl.heads import Head, HeadsLike, parse_heads
from safehead_tl.models import Model, check_model, describe
from safehead_tl.prompts import Template
from safehead_tl.results import Provenance
from safehead_tl.views.inspection import Views
from safehead_tl.writing import write_page

Panel: TypeAlias = Literal["original", "ablated", "uniform"]
PANELS: tuple[Panel, ...] = get_args(Panel)

MAX_HEADS = 8
"""In one figure: a panel of 64 tokens takes 30 kB, and all are drawn at once."""

CALL = re.compile(
    r'render\(\s*"([\w-]+)",\s*CircuitsVis\.AttentionHeads,\s*(\{.*\})\s*\)\s*</script>\Z'
)
"""How circuitsvis ends a figure. JSON has no line breaks, so no token can look like this."""

STYLE = """<style>
.safehead-attention { background: var(--jp-layout-color0, white); padding: 8px; }
.safehead-attention { color: var(--jp-content-font-color1, #222); font-family: sans-serif; }
.safehead-attention canvas { background: white; }
.safehead-attention h2 { display: none; }
.safehead-attention h4 { position: static !important; font-size: 12px; min-height: 3.5em; }
.safehead-attention h4 { background: #eee !important; color: #222 !important; }
.safehead-attention :has(> * > * > h4) { flex-basis: 200px !important; max-width: 50% !important }
</style>"""
"""Room for the panels to be compared in, and their names above them, not over them."""

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'">
{script}</head>
<body>{views}</body></html>
"""


@dataclass(frozen=True, eq=False)
class AttentionView:
    """Attention of heads on one prompt, panel by panel; a notebook draws it.

    Attributes:
        tokens: the tokens that are shown, as people can read them.
        names: what each panel is.
        patterns: the panels: a row for each token that looks, a column for each it looks at.
        notes: what else there is to know, in sentences.
        heads: whose attention it is.
        provenance: where it came from. It does not hold the prompt; `tokens` do.
    """

    tokens: tuple[str, ...]
    names: tuple[str, ...]
    patterns: Float[Tensor, "panel query key"]
    notes: tuple[str, ...]
    heads: tuple[Head, ...]
    provenance: Provenance

    def __repr__(self) -> str:
        heads = " ".join(map(str, self.heads))
        return f"<AttentionView: {heads}; {len(self.tokens)} tokens; {', '.join(self.names)}>"

    def html(self, script: bool = True) -> str:
        """The figure as a piece of HTML, which loads nothing.

        Args:
            script: whether to begin with the script that draws, 1.3 MB. A page with several
                figures needs it once, in the first.

        Raises:
            SafeheadError: if this version of circuitsvis is not known here.
        """
        place, data = _figure(self)
        lines = [
            *([attention_script()] if script else []),
            f'<div class="safehead-attention">{STYLE}',
            f"<h3>Attention of {head_words(self.heads)}</h3>",
            *(f"<p>{html.escape(note)}</p>" for note in self.notes),
            f'<div id="{place}">This figure needs JavaScript, and the script that draws.</div>',
            f'<script>CircuitsVis.render("{place}", CircuitsVis.AttentionHeads, {data})</script>',
            "</div>",
        ]
        return "\n".join(lines)

    def save(
        self,
        path: str | Path,
        *below: AttentionView,
        title: str = "Attention of heads",
        overwrite: bool = False,
    ) -> None:
        """Writes the figure as a page that works by itself, offline.

        Args:
            path: the page, `*.html`.
            below: figures to come below this one on the same page.
            title: the page's.
            overwrite: replace what is there even if this toolkit did not write it.

        Raises:
            SafeheadError: if it may not be written or cannot be.
        """
        write_page(path, attention_page([self, *below], title), overwrite=overwrite)

    def _repr_html_(self) -> str:
        return self.html()


def attention(
    model: Model,
    prompt: str,
    heads: HeadsLike,
    *,
    template: Template = "auto",
    ablation: str | Ablation = "undifferentiated",
    ablate: HeadsLike | None = None,
    show: Sequence[Panel] = PANELS,
    max_tokens: int = 64,
) -> AttentionView:
    """Shows where heads look on a prompt, beside what an ablation makes of it.

    Runs the model once for each kind of panel, up to the highest layer shown.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`.
        prompt: one text.
        heads: one to eight heads, in any spelling.
        template: as in `ships`.
        ablation: what is done to the heads of `ablate`.
        ablate: the heads to ablate, all at once; by default `heads`.
        show: which panels: `"original"`, `"ablated"` (the same head with `ablate` ablated),
            `"uniform"` (A: every row even over the keys that it may see; one panel, or one for
            each kind of layer if layers see different keys).
        max_tokens: how many tokens to show at most: the last ones. The model reads them all.

    Returns:
        The patterns, unrounded (a page has three digits).

    Raises:
        SafeheadError: for no or too many heads, a head that does not exist, an unknown panel, heads
            to ablate that no panel shows, or as `encode` and `resolve_ablation` do.

    Example:
        >>> model = sh.load_model("demo")
        >>> view = sh.attention(model, "how do i bend a crobe", "L1H3")
        >>> view.names
        ('L1H3', 'L1H3 ablated: undifferentiated attention', 'uniform A')
        >>> view.save("attention.html")
    """
    started = time.perf_counter()
    check_model(model)
    size = (model.cfg.n_layers, model.cfg.n_heads)
    shown = parse_heads(heads, *size)
    ablated = shown if ablate is None else parse_heads(ablate, *size)
    _check(shown, ablated, show, max_tokens)
    if ablate is not None and "ablated" not in show:
        raise SafeheadError(f"ablate={ablate!r} would not be seen: add 'ablated' to show")
    views = Views.of(model, [prompt], template, ablation)
    even = replace(views, ablation=UndifferentiatedAttention())
    looks = {"original": (views, ()), "ablated": (views, ablated), "uniform": (even, shown)}
    seen = {panel: looks[panel][0].patterns_with(0, shown, looks[panel][1]) for panel in show}
    passes = len(seen) * (max(head.layer for head in shown) + 1) / model.cfg.n_layers
    provenance = Provenance.now(
        model=describe(model),
        ablation=views.ablation.describe(),
        prompts=views.batch.describe(),
        settings={"show": list(seen), "ablate": [str(head) for head in ablated]},
        seconds=time.perf_counter() - started,
        forward_passes=passes + views.ablation.passes,
    )
    done, tokens = f"ablated: {ablation_words(provenance)}", views.tokens(0)
    notes = ["A row is a token that looks, a column one that it looks at; grey comes after it."]
    notes += [f"{head_words(ablated, len(ablated))} {done}."] if "ablated" in seen else []
    notes += ["Uniform A: even over all that a row may look at."] if "uniform" in seen else []
    first = max(len(tokens) - max_tokens, 0)
    if first:
        notes.append(
            f"Of {len(tokens)} tokens the last {max_tokens} are shown: number 0 here is the "
            f"prompt's {first}, and what they give to the {first} before them is left out."
        )
    panels = dict(_panels(seen, shown, ablated, done))
    patterns = torch.stack(list(panels.values()))[:, first:, first:]
    return AttentionView(
        tuple(tokens[first:]), tuple(panels), patterns, tuple(notes), shown, provenance
    )


def attention_page(views: Sequence[AttentionView], title: str = "Attention of heads") -> str:
    """A whole page as HTML: figures below one another, with one script; it loads nothing."""
    figures = "\n".join(view.html(script=False) for view in views)
    return PAGE.format(title=html.escape(title), script=attention_script(), views=figures)


def attention_script() -> str:
    """The `<script>` that a page needs before `AttentionView.html(script=False)`."""
    source = files("circuitsvis") / "dist" / "cdn" / "iife.js"
    code = source.read_text(encoding="utf-8").replace("</script", r"<\/script")
    return f"<script>{code}</script>"


def _figure(view: AttentionView) -> tuple[str, str]:
    """The id of a figure's element, and its data, as JSON that no token can break out of."""
    drawn = attention_heads(
        attention=view.patterns.double().round(decimals=3).tolist(),
        tokens=list(view.tokens),
        attention_head_names=list(view.names),
    )
    found = CALL.search(drawn.local_src)
    if found is None:
        raise SafeheadError("this circuitsvis writes figures in an unknown way: use 1.43.3")
    return found[1], found[2].replace("<", r"\u003c")


def _check(
    shown: tuple[Head, ...], ablated: tuple[Head, ...], show: Sequence[Panel], max_tokens: int
) -> None:
    if not shown or not ablated:
        raise SafeheadError(f"no heads were given to {'ablate' if shown else 'show'}")
    if len(shown) > MAX_HEADS:
        raise SafeheadError(
            f"{len(shown)} heads are too many for one figure: show up to {MAX_HEADS} at once"
        )
    if isinstance(show, str) or not show or not set(show) <= set(PANELS):
        raise SafeheadError(f"show={show!r} is not known: give one or more of {PANELS}")
    if max_tokens < 1:
        raise SafeheadError(f"max_tokens={max_tokens} leaves nothing to show: give at least 1")


def _panels(
    seen: Mapping[Panel, Tensor], shown: tuple[Head, ...], ablated: tuple[Head, ...], done: str
) -> Iterator[tuple[str, Float[Tensor, "query key"]]]:
    """What is shown, by name: each head's panels side by side, then A."""
    for index, head in enumerate(shown):
        if "original" in seen:
            yield str(head), seen["original"][index]
        if "ablated" in seen:
            others = "" if ablated == (head,) else f" with {head_words(ablated, 3)}"
            yield f"{head}{others} {done}", seen["ablated"][index]
    kinds: dict[bytes, list[int]] = {}
    for index, even in enumerate(seen.get("uniform", ())):
        kinds.setdefault(even.numpy().tobytes(), []).append(index)
    for alike in kinds.values():
        layers = sorted({shown[index].layer for index in alike})
        where = f" of layer {', '.join(map(str, layers))}" if len(kinds) > 1 else ""
        yield f"uniform A{where}", seen["uniform"][alike[0]]
