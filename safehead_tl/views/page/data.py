"""What the report's page is given: scores, patterns, next tokens and answers, made small."""

from __future__ import annotations

import base64
import contextlib
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.figures import MEASURES, UNITS, ablation_words
from safehead_tl.heads import Group, Head
from safehead_tl.judges import Judge, RefusalPrefixJudge, judged
from safehead_tl.measures import Knockout
from safehead_tl.models import (
    Model,
    next_token_log_probs,
    no_bars,
    require_finite,
    unembedded,
)
from safehead_tl.results import LEAST, HeadGroup, HeadScores, Rate, studentised_interval
from safehead_tl.scan import Run, even_slices
from safehead_tl.views.inspection import Look, Views, shown_token
from safehead_tl.views.page.words import arrow_words, path_words

NEXT_TOKENS = 10
FEW = 5
"""Tokens that a head's card names of each kind."""
AT_ONCE = 32
"""Rows that are unembedded at once."""
REASON = 80
"""Characters of a judge's reason, which may be a model's whole answer."""

SAME_PATTERNS = (
    "This ablation changes what a head puts out, not where it looks: its own attention is the same."
)


@dataclass
class TokenTable:
    """Tokens by number: the page holds each text once."""

    tokenizer: Any
    texts: list[str] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def place(self, text: str) -> int:
        """The number of a token's text."""
        if text not in self._places:
            self._places[text] = len(self.texts)
            self.texts.append(text)
        return self._places[text]

    def highest(self, values: Float[Tensor, " vocab"], count: int) -> list[tuple[int, float]]:
        """The tokens with the highest values, as pairs of number and value."""
        best = values.topk(min(count, len(values)))
        return [
            (self.place(shown_token(self.tokenizer, token)), value)
            for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def likeliest(self, log_probs: Float[Tensor, " vocab"]) -> list[tuple[int, float]]:
        """The likeliest tokens as pairs of number and probability."""
        best = self.highest(log_probs, NEXT_TOKENS)
        return [(place, round(math.exp(value), 5)) for place, value in best]

    def named(self, log_probs: Float[Tensor, " vocab"]) -> list[tuple[str, float]]:
        """The same with the tokens' texts."""
        return [(self.texts[place], share) for place, share in self.likeliest(log_probs)]


@dataclass(frozen=True)
class Shown:
    """What a page shows.

    Attributes:
        views: the model on the prompts to show, through each ablation, by its key; first the
            scores' own.
        labels: what each of these ablations does, in words.
        maps: scores of all heads: first those of these prompts.
        panels: the heads that get whole patterns, next tokens and answers.
        group: heads that are ablated together too.
        judge: who judges answers.
        max_new_tokens: length of answers; 0: none; `None`: 48, or what fits.
        run: how it runs.
    """

    views: Mapping[str, Views]
    labels: Mapping[str, str]
    maps: Sequence[HeadScores]
    panels: Sequence[Head]
    group: HeadGroup | None
    judge: Judge | None
    max_new_tokens: int | None
    run: Run

    @property
    def first(self) -> Views:
        """Through the ablation that the scores are of."""
        return next(iter(self.views.values()))

    @property
    def members(self) -> Group:
        """The heads of the group."""
        return () if self.group is None else self.group.heads


def map_data(
    maps: Sequence[HeadScores],
    marked: Sequence[Head],
    marked_as: str,
    group: HeadGroup | None = None,
    knockout: Knockout | None = None,
) -> dict[str, Any]:
    """What the map of all heads shows.

    Args:
        maps: scores of the same model.
        marked: heads to mark.
        marked_as: what they are.
        group: heads that were found step by step.
        knockout: heads two by two.
    """
    scores, *_ = maps
    layers, heads = scores.values.shape
    return {
        "shape": {"layers": layers, "heads": heads, "kvSize": scores.heads_per_kv_group},
        "maps": [_map(each, title) for each, title in zip(maps, _titles(maps), strict=True)],
        "marked": map_places(marked, scores),
        "markedAs": marked_as,
        "path": group
        and {
            "heads": map_places(group.heads, scores),
            "scores": [*map(short, group.scores)],
            "words": path_words(group),
        },
        "arrows": []
        if knockout is None
        else [*map(partial(_arrow, scores, knockout), knockout.gates)],
    }


def _arrow(scores: HeadScores, knockout: Knockout, pair: tuple[Head, Head]) -> dict[str, Any]:
    first, second = map(knockout.heads.index, pair)
    start, end = map_places(pair, scores)
    change = short(float(knockout.change[first, second]))
    return {"from": start, "to": end, "change": change, "words": arrow_words(knockout, pair)}


def page_data(
    shown: Shown, marked: Sequence[Head], marked_as: str, knockout: Knockout | None = None
) -> dict[str, Any]:
    """Everything that the page's script draws.

    Args:
        shown: what to show.
        marked: heads to mark.
        marked_as: what they are.
        knockout: heads two by two.
    """
    views, scores, panels = shown.first, shown.maps[0], shown.panels
    table, texts = TokenTable(views.model.tokenizer), views.batch.prompts
    tokens = [[table.place(token) for token in views.tokens(each)] for each in range(len(texts))]
    passes, said = _passes(shown), _answers(shown)
    key, *_ = shown.views

    def told(moved: Float[Tensor, "prompt vocab"], key: str, group: Group) -> list[dict[str, Any]]:
        """What comes next with a group ablated, and what is answered, prompt by prompt."""
        return [
            {"next": table.likeliest(after), "kl": short(divergence(plain, after)), **answer}
            for plain, after, answer in zip(passes.plain, moved, said[key, group], strict=True)
        ]

    alone: dict[Head, dict[str, list[dict[str, Any]]]] = {head: {} for head in panels}
    for name, each in shown.views.items():
        for head, states in zip(
            panels, each.alone(panels, shown.run) if panels else (), strict=True
        ):
            moved = told(log_probs(views.model, states), name, (head,))
            after = passes.after[name][head]
            alone[head][name] = [
                {**one, "after": pattern} for one, pattern in zip(moved, after, strict=True)
            ]
    together = told(torch.cat(passes.moved), key, shown.members) if shown.group else []
    return {
        **map_data(shown.maps, marked, marked_as, shown.group, knockout),
        "ablations": [
            {"key": name, "label": shown.labels[name], "note": pattern_note(each.ablation)}
            for name, each in shown.views.items()
        ],
        "prompts": [
            {
                "text": text,
                "tokens": tokens[number],
                "next": table.likeliest(passes.plain[number]),
                **said[key, ()][number],
                "lastRows": passes.last_rows[number],
            }
            for number, text in enumerate(texts)
        ],
        "perPrompt": None
        if scores.per_prompt is None
        else _packed(scores.per_prompt[: len(texts)].float()),
        "before": {str(head): patterns for head, patterns in passes.before.items()},
        "ablated": {str(head): by_ablation for head, by_ablation in alone.items()},
        "group": shown.group
        and {
            "label": f"{', '.join(map(str, shown.members))} (Sahara)",
            "heads": map_places(shown.members, scores),
            "ablation": key,
            "prompts": [
                {**one, "after": {str(head): pattern for head, pattern in after.items()}}
                for one, after in zip(together, passes.together, strict=True)
            ],
        },
        "cards": _cards(shown, table, passes, tokens),
        "thumbnails": passes.thumbnails,
        "tokens": table.texts,
    }


@dataclass
class _Passes:
    """What one pass of each prompt shows, and another one with the group ablated.

    Attributes:
        plain: log-probabilities of the next token.
        last_rows: where all heads look from the last token, packed.
        before: whole patterns of the panels' heads, packed.
        after: the same with each ablated alone, by ablation; `None` where nothing changes.
        together: the same with the group ablated.
        moved: log-probabilities of the next token with the group ablated.
        looked: where the panels' heads look from the last token.
        written: what they add to the last state, mean over prompts; `None` where it is not known.
        thumbnails: of all heads, packed.
    """

    plain: list[Float[Tensor, " vocab"]] = field(default_factory=list)
    last_rows: list[str] = field(default_factory=list)
    before: dict[Head, list[str]] = field(default_factory=dict)
    after: dict[str, dict[Head, list[str | None]]] = field(default_factory=dict)
    together: list[dict[Head, str | None]] = field(default_factory=list)
    moved: list[Float[Tensor, "1 vocab"]] = field(default_factory=list)
    looked: list[Float[Tensor, "head key"]] = field(default_factory=list)
    written: Float[Tensor, "head d_model"] | None = None
    thumbnails: str = ""


def _passes(shown: Shown) -> _Passes:
    views, panels = shown.first, shown.panels
    found = _Passes(
        before={head: [] for head in panels},
        after={key: {head: [] for head in panels} for key in shown.views},
    )
    written, small = list[Tensor](), list[Tensor]()
    prompts = range(len(views.batch.prompts))
    quiet = no_bars(shown.run.progress)
    for prompt in tqdm(prompts, desc="report, prompts", unit="prompt", disable=quiet):
        seen = views.look(prompt, panels)
        found.plain += log_probs(views.model, seen.state)
        found.last_rows.append(packed(seen.last_rows))
        small.append(seen.thumbnails)
        found.looked.append(seen.last_rows.flatten(0, 1)[map_places(panels, shown.maps[0])])
        for head, pattern in seen.patterns.items():
            found.before[head].append(triangle(pattern))
        for key, each in shown.views.items():
            for head, after in _changed(seen, each.ablated_patterns(prompt, seen)).items():
                found.after[key][head].append(after)
        if shown.members:
            moved = views.look(prompt, panels, shown.members)
            found.moved.append(log_probs(views.model, moved.state))
            found.together.append(_changed(seen, moved.patterns))
        if panels and len(written) == prompt:  # it was known of all prompts before
            with contextlib.suppress(SafeheadError):  # of an architecture that writes otherwise
                written.append(views.written(seen))
    if panels and len(written) == len(prompts):
        found.written = torch.stack(written).mean(0)
    found.thumbnails = small_patterns(small)
    return found


def _changed(seen: Look, patterns: Mapping[Head, Tensor]) -> dict[Head, str | None]:
    """Patterns made small; `None` where they are as they were."""
    return {
        head: None if torch.equal(pattern, seen.patterns[head]) else triangle(pattern)
        for head, pattern in patterns.items()
    }


def _answers(shown: Shown) -> dict[tuple[str, Group], list[dict[str, Any]]]:
    """What the model answers to each prompt, and what the judge says of it, by what is ablated."""
    asked, texts, prompts = list[tuple[str, Group]](), list[str](), shown.first.batch.prompts
    groups: list[Group] = [(), *((head,) for head in shown.panels), shown.members]
    for key, views in shown.views.items():
        these, groups = [*dict.fromkeys(groups)], [(head,) for head in shown.panels]
        asked += [(key, group) for group in these]
        if shown.max_new_tokens != 0 and these:
            texts += [*chain(*views.answers(these, shown.max_new_tokens, shown.run))]
    nothing: list[dict[str, Any]] = [{} for _ in prompts * len(asked)]
    told = judged_answers(shown.judge, prompts * len(asked), texts) if texts else nothing
    starts = range(0, len(told), len(prompts))
    return dict(zip(asked, (told[each : each + len(prompts)] for each in starts), strict=True))


def judged_answers(
    judge: Judge | None, prompts: Sequence[str], answers: Sequence[str]
) -> list[dict[str, Any]]:
    """Answers, each with what a judge makes of it.

    What the judge does not take for a success was refused if it opens with a refusal; whether
    anything else was, a judge's reason has to tell.
    """
    if judge is None:
        return [{"answer": answer} for answer in answers]
    found = []
    opens = RefusalPrefixJudge().judge(prompts, answers)
    for answer, verdict, opening in zip(
        answers, judged(judge, prompts, answers), opens, strict=True
    ):
        kind = "complied" if verdict.success else "unclear" if opening.success else "refused"
        reason = verdict.reason if len(verdict.reason) < REASON else f"{verdict.reason[:REASON]}…"
        told = {"label": f"{kind}: {reason}" if reason else kind, "kind": kind}
        found.append({"answer": answer, "verdict": told})
    return found


def _cards(
    shown: Shown, table: TokenTable, passes: _Passes, tokens: Sequence[Sequence[int]]
) -> dict[str, dict[str, Any]]:
    """What else there is to know of the panels' heads."""
    model, scores, panels = shown.first.model, shown.maps[0], shown.panels
    looked = torch.zeros(len(panels), len(table.texts))
    for places, rows in zip(tokens, passes.looked, strict=True):
        looked.index_add_(1, torch.tensor(places), rows / len(tokens))
    written = passes.written
    logits: list[Tensor | None] = [None] * len(panels)
    if written is not None:
        slices = even_slices(len(panels), AT_ONCE)
        logits = [*torch.cat([unembedded(model, written[some]).cpu() for some in slices])]
    found = {}
    for head, own, shares in zip(panels, logits, looked, strict=True):
        best = shares.topk(min(FEW, int(shares.count_nonzero())))
        each = None if scores.per_prompt is None else scores.per_prompt[:, *head].tolist()
        scored = not math.isnan(scores[head])
        found[str(head)] = {
            "promotes": [] if own is None else _short_pairs(table.highest(own, FEW)),
            "suppresses": []
            if own is None
            else [(place, -value) for place, value in _short_pairs(table.highest(-own, FEW))],
            "looks": _short_pairs(zip(best.indices.tolist(), best.values.tolist(), strict=True)),
            "perPrompt": [*map(short, each)] if each is not None and scored else None,
            "interval": interval(scores, head),
        }
    return found


def _map(scores: HeadScores, title: str) -> dict[str, Any]:
    exact, known = scores.values.flatten(), scores.best_known.flatten()
    layers, heads = scores.values.shape
    every = [Head(layer, head) for layer in range(layers) for head in range(heads)]
    rates = scores.unit == "rate" and scores.per_prompt is not None
    words = UNITS[scores.measure]
    return {
        "title": title,
        "unit": words.rpartition(", ")[2],
        "words": words,
        "signed": scores.signed,
        "scores": [*map(short, known.tolist())],
        "ranked": map_places([head for head, _ in scores.ranked()], scores),
        "pale": (exact.isnan() & ~known.isnan()).nonzero().flatten().tolist(),
        "intervals": [interval(scores, head) for head in every] if rates else None,
    }


def _titles(maps: Sequence[HeadScores]) -> list[str]:
    """What each map shows; of several of one measure under which ablation, or their number."""
    names = [MEASURES[scores.measure] for scores in maps]
    longer = [f"{MEASURES[each.measure]} under {ablation_words(each.provenance)}" for each in maps]
    names = [
        own if names.count(own) == 1 else more for own, more in zip(names, longer, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({1 + names[:number].count(name)})"
        for number, name in enumerate(names)
    ]


def map_places(heads: Sequence[Head], scores: HeadScores) -> list[int]:
    """Where heads are in what goes through the map row by row."""
    return [head.layer * scores.values.shape[1] + head.head for head in heads]


def interval(scores: HeadScores, head: Head) -> tuple[float, float] | None:
    """95 % interval of a head's score over prompts: of a share Wilson's, of a mean bootstrap-t.

    `None` for one score of all prompts, a head that was not scored, fewer prompts than six, or
    equal scores.
    """
    if scores.per_prompt is None or math.isnan(scores[head]):
        return None
    each = scores.per_prompt[:, *head].double()
    if scores.unit == "rate":
        found: tuple[float, float] | None = Rate(float(each.sum()), len(each)).interval
    else:
        bounds = (-math.inf if scores.signed else 0.0, math.inf)
        found = None if len(each) < LEAST else studentised_interval(each.tolist(), bounds)
    return found and (float(f"{found[0]:.4g}"), float(f"{found[1]:.4g}"))


def log_probs(model: Model, states: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
    """The next token's log-probabilities from last states, on the CPU.

    Raises:
        SafeheadError: if the model's numbers are not finite.
    """
    logs = next_token_log_probs(model, states.to(model.cfg.device)).cpu()
    return require_finite(model, logs, range(len(logs)), "the next token's probabilities")


def divergence(plain: Float[Tensor, " vocab"], moved: Float[Tensor, " vocab"]) -> float:
    """KL of what would come next from what does, in nats."""
    return float((plain.exp() * (plain - moved)).sum().clamp(min=0))


def pattern_note(ablation: Ablation) -> str:
    """Why a head's attention is the same with it ablated, if it is."""
    return SAME_PATTERNS if ablation.keeps_patterns else ""


def short(value: float) -> float | None:
    """Four digits are enough to show; there is no NaN in JSON."""
    return None if math.isnan(value) else float(f"{value:.4g}")


def _short_pairs(pairs: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(place, float(f"{value:.4g}")) for place, value in pairs]


def packed(shares: Float[Tensor, ...]) -> str:
    """Numbers from 0 to 1, a byte each, as a text that the browser unpacks."""
    return _packed((shares * 255).round().clamp(0, 255).to(torch.uint8))


def _packed(numbers: Tensor) -> str:
    return base64.b64encode(zlib.compress(numbers.contiguous().numpy().tobytes())).decode()


def small_patterns(looks: Sequence[Float[Tensor, "layer head cell"]]) -> str:
    """All heads' small patterns, means over prompts, in shares of each head's largest number."""
    mean = torch.stack([*looks]).mean(0)
    return packed(mean / mean.amax(-1, keepdim=True).clamp(min=1e-9))


def triangle(pattern: Float[Tensor, "query key"]) -> str:
    """The lower triangle row by row, a byte a number: causal attention has no more."""
    rows, columns = torch.tril_indices(*pattern.shape)
    return packed(pattern[rows, columns])
