"""What a figure says was done, in words, from a result's provenance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from safehead_tl.figures.style import plain
from safehead_tl.heads import Head
from safehead_tl.results import Provenance

if TYPE_CHECKING:
    from safehead_tl.results import HeadScores

MEASURES = {
    "ships": "Ships",
    "generalized_ships": "Generalized Ships",
    "legacy_dim0": "LEGACY, no score: the released code's hidden coordinate 0",
    "refusal_log_odds": "Refusal log-odds",
    "necessity": "Necessity",
    "sufficiency": "Sufficiency",
    "integrated_gradients": "Integrated gradients",
    "direct_attribution": "Direct attribution",
    "direct_logit_attribution": "Direct logit attribution",
    "asr": "Attack success of each head alone",
    "coherent_asr": "Coherent attack success of each head alone",
    "refusal": "Refusals with each head alone",
    "coherent": "Coherent text with each head alone",
    "chosen": "Heads that prompts chose for themselves",
}
UNITS = {
    "ships": "mean KL, nats",
    "generalized_ships": "sum of angles, radians",
    "legacy_dim0": "legacy: angle of coordinate 0, degrees",
    "refusal_log_odds": "fall of refusal log-odds, nats",
    "necessity": "share of the gap lost",
    "sufficiency": "share of the gap gained",
    "integrated_gradients": "share of all heads' effect, nats",
    "direct_attribution": "contribution along the direction, residual",
    "direct_logit_attribution": "contribution to refusal log-odds, logits",
    **dict.fromkeys(("asr", "coherent_asr", "refusal", "coherent"), "share of responses"),
    "chosen": "share of prompts",
}

READINGS = {
    "left": "",
    "left-nested": "nested subspaces, ",
    "right": "right singular vectors, ",
    "right-nested": "right singular vectors, nested subspaces, ",
    "legacy-dim0": "hidden coordinate 0 alone, ",
}
"""What a figure says of how Eq. 11 was read, but for the usual way."""


def ablation_words(provenance: Provenance) -> str:
    """The ablation, with its factor where it has one."""
    ablation = provenance.ablation
    epsilon = ablation.get("epsilon")
    label = str(ablation["label"])
    return label if epsilon is None else f"{label} (epsilon {epsilon:g})"


def head_words(heads: Sequence[Head], most: int = 8) -> str:
    """Heads by their names; of many, the first ones."""
    named = ", ".join(map(str, heads[:most]))
    return named if len(heads) <= most else f"{named} and {len(heads) - most} more"


def model_words(provenance: Provenance) -> str:
    """The model's name."""
    return plain(str(provenance.model["name"]), 80)


def prompt_words(provenance: Provenance, kind: str = "") -> str:
    """How many prompts, of which kind, in which template, and with what behind it."""
    prompts = provenance.prompts
    count = prompts["prompt_count"]
    system = "" if prompts["system"] is None else " with a system prompt"
    template = plain(repr(prompts["template"]))
    noun = f"{kind} {'prompt' if count == 1 else 'prompts'}".strip()
    words = f"{count} {noun}, template {template}{system}"
    if prompts["prefix"] is not None:
        words += f", answers begun with {plain(repr(prompts['prefix']))}"
    answer = provenance.settings.get("answer")
    if answer is not None:
        tokens = provenance.settings["answer_tokens"]
        words += f", mean over the {tokens} tokens of the answer {plain(repr(answer))}"
    return words


def rotation_words(provenance: Provenance) -> str:
    """How the prompts' states are compared, for measures that do."""
    settings = provenance.settings
    centred = "centred" if settings["centre"] else "uncentred"
    vectors = READINGS[settings["reading"]]
    return f"{vectors}rank {settings['rank']}, {centred}, {site_words(settings['site'])}"


def site_words(site: str) -> str:
    """Where states are read."""
    return {"final_norm": "after the final norm", "resid_post": "before the final norm"}[site]


def score_words(scores: HeadScores) -> tuple[str, list[str]]:
    """What was scored, and on what."""
    title = MEASURES[scores.measure]
    if not scores.measure.startswith("direct"):
        title += f" under {ablation_words(scores.provenance)}"
    if scores.given:
        title += f", with {head_words(scores.given)} ablated too"
    notes = [f"{model_words(scores.provenance)}, {prompt_words(scores.provenance)}"]
    if "reading" in scores.provenance.settings:
        notes.append(rotation_words(scores.provenance))
    settings = scores.provenance.settings
    if scores.measure == "integrated_gradients":
        of = "Ships" if settings["openings"] is None else "refusal log-odds"
        notes.append(f"of {of}, at {settings['points']} points on the way to all heads ablated")
    if "site" in settings.get("direction", {}):
        where = settings["direction"]
        notes.append(f"along the refusal direction of layer {where['layer']}, {where['site']}")
    if scores.unit == "rate" and scores.measure != "chosen":
        told = scores.provenance.settings
        notes += [
            f"judge {plain(repr(told['judge']['name']))}",
            f"unablated: {told['unablated'][scores.measure]}",
        ]
    if scores.signed:
        notes.append(_sign_words(scores))
    if scores.screening is not None:
        notes.append(f"screened: {scores.screening.counts()}")
    return title, notes


def _sign_words(scores: HeadScores) -> str:
    """What a score above 0 means, and one below."""
    settings = scores.provenance.settings
    if scores.measure == "direct_attribution" and "site" not in settings["direction"]:
        return "above 0: the head writes along the direction; below: against it"
    if scores.measure == "integrated_gradients" and settings["openings"] is None:
        return "above 0: the head's share of the divergence; below: it holds it back"
    return "above 0: the head carries refusal; below: it works against it"
