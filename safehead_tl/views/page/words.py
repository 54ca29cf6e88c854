"""The report's words: what was done, what was found, and how to do it again."""

from __future__ import annotations

import html

from safehead_tl.ablations import Ablation
from safehead_tl.evaluation import Evaluation
from safehead_tl.figures import MEASURES
from safehead_tl.generation import SHARES
from safehead_tl.results import HeadGroup, HeadScores, Significance
from safehead_tl.views.maps import shift_words

SAME_PATTERNS = (
    "This ablation changes what a head puts out, not where it looks: its own attention is the same."
)


def lead(scores: HeadScores) -> str:
    """What was measured, in a sentence."""
    prompts, ablation = scores.provenance.prompts, scores.provenance.ablation
    also = f", with {', '.join(map(str, scores.given))} ablated too" if scores.given else ""
    return (
        f"{MEASURES[scores.measure]} under {ablation['label']}{also}, on "
        f"{prompts['prompt_count']} prompts in the template {prompts['template']!r}."
    )


def summary(
    scores: HeadScores,
    significance: Significance | None,
    group: HeadGroup | None,
    evaluation: Evaluation | None,
) -> list[str]:
    """What was found, a sentence each."""
    ranked = scores.ranked()
    best = ", ".join(f"{head} ({score:.4g})" for head, score in ranked[:3])
    exactly = "" if scores.screening is None else " that were scored exactly"
    lines = [f"The highest of {len(ranked)} heads{exactly}: {best}, in {scores.unit}."]
    total = sum(max(score, 0) for _, score in ranked)
    if scores.screening is not None:
        lines.append(scores.screening.sentence())
    elif total > 0:
        held, count = 0.0, 0
        for _, score in ranked:
            held, count = held + max(score, 0), count + 1
            if held >= total / 2:
                break
        if count == 1:
            lines.append(f"Half of the sum of all scores, or more, is in {ranked[0][0]} alone.")
        else:
            lines.append(f"Half of the sum of all scores is in the first {count} heads.")
    if significance is not None:
        lines.append(significance.sentence())
    if group is not None:
        named = ", then ".join(map(str, group.heads))
        lines.append(
            f"Sahara chose {named}: together they turn the prompts' states by "
            f"{group.scores[-1]:.4g} {shift_words(group)}."
        )
    if evaluation is not None and evaluation.heads:
        lines.append(
            f"With {evaluation.ablated_words(', ')} ablated, attack success goes from "
            f"{evaluation.unablated_asr} to {evaluation.asr} (95 % intervals); readable text and "
            f"attack success: {evaluation.coherent_asr}; refusals: {evaluation.refusal_rate}."
        )
        shared = scores.provenance.shared_prompts(evaluation.harmful.prompts)
        if shared:
            lines.append(
                f"{shared} of the {len(evaluation.harmful.prompts)} harmful prompts behind these "
                "shares scored the heads above too: on other prompts these may do less."
            )
    lines.append(
        "A high score says that what comes next moves when the head is ablated. It does not say "
        "that the model becomes unsafe, nor that it still makes sense: read the answers."
    )
    return lines


def sahara_section(group: HeadGroup | None) -> str:
    """Sahara's path as a table."""
    if group is None:
        return ""
    rows = "".join(
        f"<tr><td class=number>{step}</td><td>{html.escape(str(head))}</td>"
        f"<td class=number>{score:.4g}</td></tr>"
        for step, (head, score) in enumerate(zip(group.heads, group.scores, strict=True), 1)
    )
    return _section(
        "sahara",
        "A group of heads, found step by step",
        "<tr><th scope=col class=number>step</th><th scope=col>head added</th>"
        f"<th scope=col class=number>the group's shift, {shift_words(group)}</th></tr>",
        rows,
        "Sahara adds the head with which the group turns the prompts' states furthest.",
    )


def evaluation_section(evaluation: Evaluation | None) -> str:
    """An evaluation's shares as a table."""
    if evaluation is None:
        return ""
    rows = ""
    for row in evaluation.summaries():
        mean = row.control_mean
        cells = (
            f"{row.prompts}: {SHARES[row.prompts][row.metric]}",
            str(row.unablated),
            "" if row.ablated is None else str(row.ablated),
            row.p_words("unablated"),
            "" if mean is None else f"{mean:.2f}",
            row.p_words("controls"),
        )
        rows += f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
    titles = ("responses", "unablated", "ablated", "p (Holm)", "random heads", "p (Holm)")
    head = f"<tr>{''.join(f'<th scope=col>{title}</th>' for title in titles)}</tr>"
    note = (
        f"Ablated: {evaluation.ablated_words(', ')} ({evaluation.provenance.ablation['label']}). "
        "Shares with 95 % Wilson intervals; p: exact paired test, and rank among random heads; in "
        "brackets corrected for the number of shares. Judge: "
        f"{evaluation.provenance.settings['judge']['name']}. {' '.join(evaluation.notes())}"
    )
    return _section("evaluation", "What the model then says, in shares", head, rows, note)


def pattern_note(ablation: Ablation) -> str:
    """Why a head's attention is the same with it ablated, if it is."""
    return SAME_PATTERNS if ablation.keeps_patterns else ""


def how(scores: HeadScores) -> str:
    """How to make the page again, and with which versions."""
    provenance = scores.provenance
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return (
        f"safehead_tl's report on {provenance.model['name']} ({provenance.model['dtype']}, "
        f"{provenance.model['device']}), with {versions}; {provenance.forward_passes:,.0f} forward "
        f"passes in {provenance.seconds:g} s for the scores, {provenance.created}. Attention is "
        "shown to the nearest 1/255. The same call with the same prompts, template and ablation "
        "makes it again; their hashes are below."
    )


def _section(name: str, title: str, head: str, rows: str, note: str) -> str:
    return (
        f'<section aria-labelledby="h-{name}"><h2 id="h-{name}">{html.escape(title)}</h2>'
        f'<p class="hint">{html.escape(note)}</p><div class="scroll"><table id="{name}">'
        f"<thead>{head}</thead><tbody>{rows}</tbody></table></div></section>"
    )
