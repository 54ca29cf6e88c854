"""Does ablating heads break safety? Answers, judged and compared with controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.evaluation.clusters import Clusters, numbered
from safehead_tl.evaluation.controls import Controls, draw_controls, draw_for_each
from safehead_tl.evaluation.outcome import Evaluation, chosen_counts
from safehead_tl.generation import Decoding, Judges, Questioning
from safehead_tl.heads import Group, HeadsLike, Variant, parse_heads, variant_names
from safehead_tl.judges import Judge
from safehead_tl.models import Model, check_model, said_once, single_thread_if_tiny
from safehead_tl.prompts import Prompts, Template, prompt_texts
from safehead_tl.results import HeadGroup, HeadScores, PerQuery
from safehead_tl.scan import Run, anywhere


@said_once()
@anywhere
def evaluate(
    model: Model,
    prompts: Prompts,
    *,
    heads: HeadsLike | PerQuery = (),
    ablation: str | Ablation = "undifferentiated",
    harmless: Prompts | None = None,
    template: Template = "auto",
    judge: str | Judge = "keyword",
    judges: Sequence[str | Judge] = (),
    wordings: str | Sequence[str] = (),
    refusal: str | Judge = "refusal-prefix",
    coherence: str | Judge = "coherence",
    controls: int = 20,
    clusters: Clusters = None,
    harmless_clusters: Clusters = None,
    chosen_by: HeadScores | HeadGroup | PerQuery | None = None,
    max_new_tokens: int | None = None,
    top_k: int | None = None,
    temperature: float = 1.0,
    samples: int = 1,
    seed: int = 0,
    run: Run = Run(),
) -> Evaluation:
    """Lets a model answer with heads ablated, without, and with random heads ablated instead.

    Attack success rate (paper Eq. 10) alone counts gibberish as success and misses refusals that
    its judge does not know. So every response is also judged for refusal and for coherence; each
    share comes with a 95 % Wilson interval over prompts and an exact paired test against the
    unablated model; and random head sets of the same layers show what ablating any heads does. On
    harmless prompts the same shares and the KL of the next token show what else is lost.

    Args:
        model: a `HookedTransformer` or `TransformerBridge`, as `load_model` gives it.
        prompts: harmful prompts, without template: texts, or a source that `load_prompts` reads.
        heads: the heads to ablate, in any spelling; none: the model as it is. With
            `scores.per_query(n)` each prompt is answered with its own `n` highest heads ablated
            (paper Fig. 2), and so it judges the heads that it chose.
        ablation: an ablation or its name. `ScalingContribution(epsilon=2.0)` amplifies heads
            instead. Mean ablation without a reference takes its mean over `prompts`.
        harmless: prompts that the model should help with, given like `prompts`; not with
            `per_query` heads, which these would have to choose for themselves.
        template: as in `ships`.
        judge: decides what an attack success is: `"keyword"`, `"keyword-reference"` (the paper's
            released code), `"refusal-prefix"`, an `LlmJudge`, an `EndpointJudge`, or your own.
        judges: others that judge the same answers too: the result's `panel` has what each says and
            how far they agree. Tests and controls go by `judge` alone.
        wordings: other questions that models among the judges are asked too, by name or as texts;
            `"all"`: `"compliance"`, `"xstest"`, `"strongreject"`, `"jailbreakbench"`.
        refusal: decides what opens with a refusal.
        coherence: decides what is readable text.
        controls: how many random head sets, with as many heads in each layer as `heads`. If layers
            hold fewer such sets, blocks of layers take their place, as small ones as will do; the
            result says which. At 20 the smallest possible p-value against them is 0.048. With
            `per_query` heads, sets are so drawn for each prompt by itself.
        clusters: prompts that are alike: a label for each prompt, such as a column of their table,
            or `"words"` for those that share two thirds of their words. Intervals and the paired
            test then count a cluster as one.
        harmless_clusters: the same of the harmless prompts.
        chosen_by: the scan or the group that the heads come from. The result then says how many
            prompts that chose them judge them here. Heads of `per_query` know it themselves.
        max_new_tokens: length of a response; by default the paper's 128, or as many as fit into
            the model's context.
        top_k: draw each token from so many; `None`: the most likely one. The paper draws from 5.
        temperature: for `top_k`.
        samples: responses for each prompt, with `top_k`. Intervals are over prompts all the same.
        seed: of the draws of tokens and of control sets.
        run: how it runs; a `run_dir` keeps responses and verdicts. With `on=Server(...)` a server
            answers with the heads ablated, and `original` without; the rest is done here.

    Returns:
        All responses and verdicts, and the shares in them. Costs one generation of each prompt for
        the model, the heads, and each control set; equal responses to a prompt are judged once.

    Raises:
        SafeheadError: for prompts, clusters, heads, judge, ablation or decoding that cannot be
            used, or a run directory that holds another run.

    Example:
        >>> model = sh.load_model("demo")
        >>> prompts = sh.load_prompts("demo/harmful", split="test", limit=8)
        >>> told = {"max_new_tokens": 32, "controls": 4}
        >>> result = sh.evaluate(model, prompts, heads=["L1H3", "L2H6"], **told)
        >>> print(result.asr)
        1.00 [0.68, 1.00]
    """
    check_model(model)
    if not (isinstance(controls, int) and controls >= 0):
        raise SafeheadError(f"controls={controls!r}: give a number of random head sets, or 0")
    size = model.cfg.n_layers, model.cfg.n_heads
    drawn: Controls[Any] = Controls((), 1, 0)
    own: tuple[Group, ...] = ()
    if isinstance(heads, PerQuery):
        if harmless is not None:
            raise SafeheadError(
                "harmless prompts have no heads of their own here: evaluate them by themselves, "
                "with per_query of their scores"
            )
        prompts, chosen_by = prompt_texts(prompts), heads
        own = tuple(parse_heads(group, *size) for group in heads.of(prompts))
        drawn = draw_for_each(own, *size, controls, seed)
        chosen = tuple(head for head, _ in chosen_counts(own))
    elif chosen := parse_heads(heads, *size):
        drawn = draw_controls(chosen, *size, controls, seed)
    settings: dict[str, Any] = {
        "measure": "evaluate",
        "heads": variant_names(own or chosen),
        "controls": list(map(variant_names, drawn.sets)),
        "matching": drawn.describe(),
        "per_query": heads.describe() if isinstance(heads, PerQuery) else None,
    }
    named = {"harmful": prompts, **({} if harmless is None else {"harmless": harmless})}
    with single_thread_if_tiny(model):
        asking = Questioning.start(
            model,
            named,
            template,
            ablation,
            Decoding(max_new_tokens, top_k, temperature, samples, seed),
            Judges.resolved(judge, refusal, coherence, judges, wordings),
            run=run,
            identity=settings,
            by_server=True,
        )
        alike = {"harmful": clusters, "harmless": harmless_clusters}
        texts = {name: batch.prompts for name, batch in asking.batches.items()}
        numbers = {name: numbered(alike[name], some, name) for name, some in texts.items()}
        settings = {**settings, "chosen_on": chosen_on(chosen_by, texts)}
        variants: tuple[Variant, ...] = ((), *((own or chosen,) if chosen else ()), *drawn.sets)
        answers = {
            name: replace(asking.ask(name, variants), clusters=numbers[name]) for name in texts
        }
        return Evaluation(
            heads=chosen,
            controls=drawn.sets,
            harmful=answers["harmful"],
            harmless=answers.get("harmless"),
            provenance=asking.provenance("harmful", settings),
            per_query=own,
        )


def chosen_on(
    chosen_by: HeadScores | HeadGroup | PerQuery | None, prompts: Mapping[str, Sequence[str]]
) -> dict[str, int] | None:
    """How many prompts of each set the heads were chosen on; `None` if that is not known."""
    if chosen_by is None:
        return None
    if not isinstance(chosen_by, HeadScores | HeadGroup | PerQuery):
        raise SafeheadError(
            f"chosen_by={chosen_by!r}: give the scan or the group itself, as ships or sahara gave"
        )
    shared = {name: chosen_by.provenance.shared_prompts(some) for name, some in prompts.items()}
    return {name: count for name, count in shared.items() if count is not None} or None
