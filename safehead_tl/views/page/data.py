"""What the report's page is given: scores, patterns, next tokens and answers, made small."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Group, Head
from safehead_tl.judges import Judge
from safehead_tl.measures import Knockout
from safehead_tl.models import no_bars
from safehead_tl.results import HeadGroup, HeadScores
from safehead_tl.scan import Run
from safehead_tl.views.inspection import Look, Views, divergence, log_probs
from safehead_tl.views.maps import map_data, map_places
from safehead_tl.views.packing import TokenTable, packed, raw, short, small_patterns, triangle
from safehead_tl.views.page.cards import card, head_logits, tokens_looked_at
from safehead_tl.views.page.words import pattern_note
from safehead_tl.views.verdicts import judged_answers


@dataclass(frozen=True)
class Shown:
    """What a page shows.

    The first of the views is through the scores' own ablation, and the first of the maps of these
    prompts. Heads of `panels` get whole patterns, next tokens and answers; `members`, whom somebody
    `named` chose, are ablated together too; `group` was found step by step, for the map. `numbers`
    tells which of the scored prompts each shown one is; `None`: none of them.
    """

    views: Mapping[str, Views]
    labels: Mapping[str, str]
    maps: Sequence[HeadScores]
    panels: Sequence[Head]
    group: HeadGroup | None
    members: Group
    named: str
    numbers: Sequence[int | None]
    judge: Judge | None
    max_new_tokens: int | None
    run: Run

    @property
    def first(self) -> Views:
        """Through the ablation that the scores are of."""
        return next(iter(self.views.values()))


def page_data(
    shown: Shown, marked: Sequence[Head], marked_as: str, knockout: Knockout | None = None
) -> dict[str, Any]:
    """Everything that the page's script draws."""
    views, scores, panels = shown.first, shown.maps[0], shown.panels
    table, texts = TokenTable(views.model.tokenizer), views.batch.prompts
    tokens = [[table.place(token) for token in views.tokens(each)] for each in range(len(texts))]
    said, passes = _answers(shown), _passes(shown)  # not every ablation can be answered with
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
    logits: Sequence[Tensor | None] = [None] * len(panels)
    if passes.written is not None:
        logits = [*head_logits(views.model, passes.written)]
    looked = tokens_looked_at(passes.looked, tokens, len(table.texts))
    together = told(torch.cat(passes.moved), key, shown.members) if shown.members else []
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
        "perPrompt": _per_prompt(scores, shown.numbers),
        "before": {str(head): patterns for head, patterns in passes.before.items()},
        "ablated": {str(head): by_ablation for head, by_ablation in alone.items()},
        "group": None
        if not shown.members
        else {
            "label": f"{', '.join(map(str, shown.members))} ({shown.named})",
            "heads": map_places(shown.members, scores),
            "ablation": key,
            "prompts": [
                {**one, "after": {str(head): pattern for head, pattern in after.items()}}
                for one, after in zip(together, passes.together, strict=True)
            ],
        },
        "cards": {
            str(head): card(scores, head, table, *own)
            for head, own in zip(panels, zip(logits, looked, strict=True), strict=True)
        },
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


def _per_prompt(scores: HeadScores, numbers: Sequence[int | None]) -> str | None:
    """Scores of the shown prompts; NaN where a prompt was not scored."""
    if scores.per_prompt is None:
        return None
    nothing = torch.full_like(scores.per_prompt[0], math.nan)
    rows = [nothing if number is None else scores.per_prompt[number] for number in numbers]
    return raw(torch.stack(rows).float())
