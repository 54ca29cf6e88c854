"""The command `log-odds`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

import safehead_tl as sh
from safehead_tl.cli import options
from safehead_tl.cli.arguments import arguments
from safehead_tl.cli.output import SavedOutput
from safehead_tl.cli.ships import ranking, run_words
from safehead_tl.errors import SafeheadError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from safehead_tl.models import Model
    from safehead_tl.prompts import Prompts, Template


@dataclass(frozen=True)
class OpeningOptions:
    """How refusals and compliant answers open."""

    panel: ClassVar[str] = "Openings"
    refusal: Annotated[
        list[str] | None,
        typer.Option(help="How a refusal opens; again for each. With --compliance."),
    ] = None
    compliance: Annotated[
        list[str] | None, typer.Option(help="How a compliant answer opens; again for each.")
    ] = None

    def chosen(
        self, model: Model, prompts: Sequence[str], harmless: Prompts | None, template: Template
    ) -> sh.Openings:
        """Those that were given, or the model's own on prompts and on harmless ones."""
        if self.refusal and self.compliance:
            return sh.Openings.of_texts(model, self.refusal, self.compliance)
        if self.refusal or self.compliance:
            raise SafeheadError("--refusal and --compliance go together: give both")
        if harmless is None:
            raise SafeheadError(
                "how do refusals open? Give --harmless PROMPTS, for the model's own first tokens, "
                "or --refusal and --compliance"
            )
        return sh.Openings.of_answers(model, prompts, harmless, template=template)


@options.grouped
def log_odds(
    model: options.ModelOptions,
    prompts: options.PromptOptions,
    openings: OpeningOptions,
    ablation: options.AblationOptions,
    scan: options.ScanOptions,
    null: options.NullOptions,
    output: SavedOutput,
    harmless: Annotated[
        str | None,
        typer.Option(help="Prompts that the model helps with: its answers' openings are taken."),
    ] = None,
    top: options.Top = 10,
) -> None:
    """Score every head by how far ablating it lowers the log-odds of a refusal (nats, signed)."""
    told, texts = arguments(prompts, scan, ablation), prompts.load()
    others = null.load(prompts, scan.screen)
    loaded = model.load()
    odds = openings.chosen(loaded, texts, harmless, told["template"])
    score: Callable[..., sh.HeadScores] = partial(
        sh.refusal_log_odds, loaded, openings=odds, **told
    )
    scores = score(texts)
    found = null.test(scores, others, score, told["run"])
    output.keep(scores, scores.heatmap, significance=found)
    title = f"{model.model}: refusal log-odds, {run_words(scores)}"
    output.tell(ranking(title, scores, top, null=found))
    lowest, least = scores.ranked()[-1]
    output.tell(f"Above 0 a head carries refusal. The lowest: {lowest}, {least:.4g}.")
    for each in (scores.screening, found):
        if each is not None:
            output.tell(each.sentence())
