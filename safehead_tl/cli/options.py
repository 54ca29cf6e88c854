"""The command's options, and what some of them mean together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

from safehead_tl.ablations import (
    Ablation,
    MeanOverHeads,
    ScalingContribution,
    UndifferentiatedAttention,
    resolve_ablation,
)
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, read_heads
from safehead_tl.judges import EndpointJudge, Judge, LlmJudge
from safehead_tl.models import Backend
from safehead_tl.prompts import CHAT, ChatTemplate, Template, resolve_template
from safehead_tl.results import HeadGroup
from safehead_tl.scan import Screen


def _template(text: str) -> str:
    """A template as the shell passes it; a misspelt one is answered before a model is loaded."""
    text = text.replace("\\n", "\n")
    resolve_template(text)
    return text


def _screen(text: str) -> str:
    """What to screen; a misspelt word is answered before a model is loaded."""
    chosen_screen(text)
    return text


ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="'demo', 'demo-base', a name that TransformerLens knows, another hub id (loaded as a "
        "bridge), or a Hugging Face directory.",
    ),
]
Prompts = Annotated[
    str,
    typer.Option(
        help="'demo/harmful', 'demo/benign', a preset such as advbench, a .txt, .csv, .tsv, "
        ".jsonl, .json or .parquet file, a directory, or a data set's id 'owner/name[:config]'."
    ),
]
Column = Annotated[str | None, typer.Option(help="The column that holds the prompts.")]
Split = Annotated[str | None, typer.Option(help="By default the preset's, the only one, or train.")]
Limit = Annotated[
    int | None, typer.Option(help="Use so many prompts: the first, or those that --draw draws.")
]
Draw = Annotated[int | None, typer.Option(help="Draw the --limit prompts at random, by this seed.")]
TemplateText = Annotated[
    str,
    typer.Option(
        help="'direct', 'paper', 'chat', or a text with {query} in it; backslash-n is a new line.",
        callback=_template,
    ),
]
System = Annotated[
    str | None, typer.Option(help="A system prompt in front of each prompt; goes with 'chat'.")
]
AblationName = Annotated[
    str, typer.Option(help="undifferentiated, scaling, zero, mean or mean-over-heads.")
]
Epsilon = Annotated[
    float | None,
    typer.Option(
        help="Factor of undifferentiated or scaling ablation; with --via q or k by default 1e-5."
    ),
]
Channel: TypeAlias = Literal["pattern", "q", "k", "v", "z"]
Via = Annotated[
    Channel | None,
    typer.Option(
        help="What it acts on: pattern, q or k (undifferentiated); z or v (scaling); q, k or v "
        "(mean-over-heads)."
    ),
]
Weights = Annotated[
    str | None, typer.Option(help="Put the weights of this directory or hub id into MODEL.")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
BackendName = Annotated[
    Backend, typer.Option(help="As what it is loaded: HookedTransformer or TransformerBridge.")
]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda, cuda:1.")]
MaxRows = Annotated[
    int | None, typer.Option(help="Most (head, prompt) pairs in one pass: less takes less memory.")
]
MaxBytes = Annotated[
    str | None, typer.Option(help="Memory to use beyond the model's weights, such as 2GiB.")
]
SharedPrefix = Annotated[
    bool, typer.Option(help="Run what all prompts begin with once for each head.")
]
ScreenText = Annotated[
    str,
    typer.Option(
        "--screen",
        help="off: every head exactly. auto: all to first order, and exactly as many as it takes "
        "to be sure of the highest. A number: so many exactly.",
        callback=_screen,
    ),
]
RunDir = Annotated[
    Path | None,
    typer.Option(help="Keep finished pieces here; the same command again goes on from them."),
]
Heads = Annotated[
    str | None,
    typer.Option(
        help="Heads such as 'L1H3 L2H6' or '1.3,2.6', or a group that sahara --save wrote; left "
        "out: none are ablated, where a command allows that."
    ),
]
JudgeName = Annotated[
    str | None,
    typer.Option(
        help="keyword (the default), keyword-reference or refusal-prefix; with --judge-model or "
        "--judge-url, what it is asked: compliance, harmbench, llama-guard, or a text with "
        "{prompt} and {response}."
    ),
]
JudgeModel = Annotated[
    str | None,
    typer.Option(help="A local directory or hub id that judges; with --judge-url its name there."),
]
JudgeUrl = Annotated[
    str | None, typer.Option(help="An OpenAI-compatible API that judges; key in OPENAI_API_KEY.")
]
MaxNewTokens = Annotated[int, typer.Option(help="Length of a response, in tokens.")]
TopK = Annotated[
    int | None, typer.Option(help="Draw each token from so many; default: the most likely one.")
]
Temperature = Annotated[float, typer.Option(help="For --top-k.")]
Samples = Annotated[int, typer.Option(help="Responses for each prompt, with --top-k.")]
Seed = Annotated[int, typer.Option(help="Of all random draws.")]
Figure = Annotated[Path | None, typer.Option(help="Write the figure as one .html file.")]
Overwrite = Annotated[bool, typer.Option(help="Replace what is there.")]
Top = Annotated[int, typer.Option(min=1, help="How many heads to show.")]
Json = Annotated[
    Path | None, typer.Option("--json", help="Write the result as JSON ('-': print it).")
]
Save = Annotated[Path | None, typer.Option(help="Save the result (.safetensors).")]
Heatmap = Annotated[Path | None, typer.Option(help="Write the heatmap as one .html file.")]


def chosen_ablation(name: str, epsilon: float | None, via: Channel | None) -> Ablation:
    """The ablation that the options `--ablation`, `--epsilon` and `--via` mean together."""
    what = resolve_ablation(name)
    if isinstance(what, UndifferentiatedAttention) and via in (None, "pattern", "q", "k"):
        if epsilon is None and via in ("q", "k"):
            epsilon = 1e-5
        return UndifferentiatedAttention(epsilon, via or "pattern")
    if isinstance(what, MeanOverHeads) and epsilon is None and via in (None, "q", "k", "v"):
        return MeanOverHeads(via or "q")
    if isinstance(what, ScalingContribution) and via in (None, "z", "v"):
        return ScalingContribution(what.epsilon if epsilon is None else epsilon, via or "z")
    if via is not None:
        raise SafeheadError(f"--via {via} does not go with {what.name} ablation")
    if epsilon is not None:
        raise SafeheadError(f"--epsilon does not go with {what.name} ablation: leave it out")
    return what


def chosen_template(template: str, system: str | None) -> Template:
    """The template that the options `--template` and `--system` mean together."""
    if system is None:
        return template
    if template != CHAT:
        raise SafeheadError(
            "--system goes with --template chat: in a written template, write it into the text"
        )
    return ChatTemplate(system.replace("\\n", "\n"))


def chosen_screen(text: str) -> Screen:
    """What the option `--screen` means."""
    words: dict[str, Screen] = {"off": "off", "auto": "auto"}
    if text in words:
        return words[text]
    if text.isdigit() and int(text):
        return int(text)
    raise SafeheadError(f"--screen {text}: say off, auto, or how many heads to score exactly")


def chosen_heads(text: str | None) -> tuple[Head, ...]:
    """The heads that `--heads` names, or those of the group in the file that it names."""
    if text is None:
        return ()
    return HeadGroup.load(text).heads if text.endswith(".safetensors") else read_heads(text)


def chosen_judge(name: str | None, model: str | None, url: str | None) -> str | Judge:
    """The judge that `--judge`, `--judge-model` and `--judge-url` mean together."""
    asked = name or "compliance"
    if url is not None:
        if model is None:
            raise SafeheadError("--judge-url needs --judge-model: the model's name there")
        return EndpointJudge(url, model, template=asked)
    return (name or "keyword") if model is None else LlmJudge(model, format=asked)
