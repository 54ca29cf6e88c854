"""The command's options, each said once: in groups that make of them what the library takes."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypeAlias,
    cast,
    get_args,
    get_type_hints,
)

import typer
from typer.models import OptionInfo
from typing_extensions import override

import safehead_tl as sh
from safehead_tl.cli.output import Output, check_outputs
from safehead_tl.errors import SafeheadError
from safehead_tl.heads import Head, read_heads

if TYPE_CHECKING:
    from safehead_tl.evaluation import Clusters
    from safehead_tl.models import Model
    from safehead_tl.prompts import Template
    from safehead_tl.results import HeadGroup, HeadScores, Significance
    from safehead_tl.scan import Screen

SOURCE = (
    "'demo/harmful', 'demo/benign', a preset such as advbench, a .txt, .csv, .tsv, .jsonl, .json "
    "or .parquet file, a directory, or a data set's id 'owner/name[:config]'."
)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command, as options of its own, the fields of those parameters that are groups.

    A group is a dataclass whose fields are annotated as options. Its `panel` is the heading that
    its options stand under in the help. Files that an `Output` asks for are checked first.
    """
    own = inspect.signature(command, eval_str=True).parameters
    groups: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in own.items()
        if is_dataclass(parameter.annotation)
    }
    flat: list[inspect.Parameter] = []
    for name, parameter in own.items():
        flat += _options(groups[name]) if name in groups else [parameter]
    flat = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in flat]

    @wraps(command)
    def run(**given: Any) -> None:
        told = dict(given)
        made = {
            name: group(**{field.name: given.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        for output in made.values():
            if isinstance(output, Output):
                inputs = [value for name, value in told.items() if not hasattr(output, name)]
                check_outputs(output.files(), inputs, output.overwrite)
        command(**given, **made)

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in flat}
    return run


def _options(group: Any) -> list[inspect.Parameter]:
    """A group's fields as parameters."""
    hints = get_type_hints(group, include_extras=True)
    found = []
    for field in fields(group):
        kind, told = get_args(hints[field.name])
        if isinstance(told, OptionInfo):
            told = copy(told)  # which other commands may have without a heading
            told.rich_help_panel = group.panel
        empty = inspect.Parameter.empty
        default = empty if field.default is dataclasses.MISSING else field.default
        found.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[kind, told],
            )
        )
    return found


def _template(text: str) -> str:
    """A template as the shell passes it; a misspelt one is answered before a model is loaded."""
    text = text.replace("\\n", "\n")
    if text != "auto":
        from safehead_tl.prompts import resolve_template

        resolve_template(text)
    return text


def _screen(text: str) -> str:
    """What to screen; a misspelt word is answered before a model is loaded."""
    chosen_screen(text)
    return text


ModelName: TypeAlias = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="'demo', 'demo-base', 'demo-natural', a name that TransformerLens knows, another hub "
        "id (loaded as a bridge), or a Hugging Face directory.",
    ),
]
Device: TypeAlias = Annotated[str | None, typer.Option(help="Such as cpu, cuda, cuda:1.")]
Dtype: TypeAlias = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Heads: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Heads such as 'L1H3 L2H6' or '1.3,2.6', or a group that sahara --save wrote; left "
        "out: none are ablated, where a command allows that."
    ),
]
ClusterColumn: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="The column that says which prompts are alike, or 'words': those that share two "
        "thirds of their words. Intervals and tests count them as one."
    ),
]
Top: TypeAlias = Annotated[int, typer.Option(min=1, help="How many of the highest heads.")]


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and as what it is loaded."""

    panel: ClassVar[str] = "Model"
    model: ModelName
    weights: Annotated[
        str | None, typer.Option(help="Put the weights of this directory or hub id into MODEL.")
    ] = None
    dtype: Dtype = "float32"
    device: Device = None
    backend: Annotated[
        Literal["auto", "hooked", "bridge"],
        typer.Option(help="As what it is loaded: HookedTransformer or TransformerBridge."),
    ] = "auto"
    special_tokens: Annotated[
        Literal["special", "literal"] | None,
        typer.Option(help="How those that are written in a prompt are read: as such, by default."),
    ] = None

    def load(self) -> Model:
        """The model."""
        return sh.load_model(self.model, **self._told)

    def load_for(self, run: sh.Run) -> Model:
        """The model, or what other processes load it by if they run everything."""
        from safehead_tl.models import Loading

        if not isinstance(run.on, sh.Ray):
            return self.load()
        there = Path(self.model).is_dir()
        named = str(Path(self.model).resolve()) if there else self.model
        return cast("Model", Loading(named, {**self._told, "device": None}))

    @property
    def _told(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)[1:]}


@dataclass(frozen=True)
class PromptOptions:
    """Which prompts, and the text around each."""

    panel: ClassVar[str] = "Prompts"
    prompts: Annotated[str, typer.Option(help=SOURCE)]
    column: Annotated[str | None, typer.Option(help="The column that holds the prompts.")] = None
    split: Annotated[
        str | None, typer.Option(help="By default the preset's, the only one, or train.")
    ] = None
    limit: Annotated[
        int | None, typer.Option(help="Use so many prompts: the first, or those that --draw draws.")
    ] = None
    draw: Annotated[
        int | None, typer.Option(help="Draw the --limit prompts at random, by this seed.")
    ] = None
    template: Annotated[
        str,
        typer.Option(
            help="'auto' (the model's own chat template; 'paper' if it has none), 'chat', 'paper', "
            "'direct', or a text with {query} in it; backslash-n is a new line.",
            callback=_template,
        ),
    ] = "auto"
    system: Annotated[
        str | None, typer.Option(help="A system prompt in front of each prompt, in chat templates.")
    ] = None
    prefix: Annotated[
        str | None,
        typer.Option(
            help="What every answer begins with, such as 'Sure', behind the template: the model "
            "goes on from there, and judges do not see it."
        ),
    ] = None

    def load(self) -> list[str]:
        """The prompts."""
        told = {"column": self.column, "split": self.split}
        return sh.load_prompts(self.prompts, **told, limit=self.limit, draw=self.draw)

    def clusters(self, named: str | None, prompts: Sequence[str]) -> Clusters:
        """What `--clusters` means for prompts that `load` gave."""
        if named is None or named == "words":
            return named
        told = {"column": self.column, "split": self.split}
        from safehead_tl.prompts import load_labels

        return load_labels(prompts, self.prompts, named, **told)

    @property
    def form(self) -> Template:
        """The template that `--template`, `--system` and `--prefix` mean together."""
        form: str | sh.ChatTemplate = self.template
        if self.system is not None:
            if form not in ("auto", "chat"):
                raise SafeheadError(
                    "--system goes with chat templates: in a written one, write it into the text"
                )
            form = sh.ChatTemplate(self.system.replace("\\n", "\n"))
        if self.prefix is None:
            return form
        return sh.Prefilled(self.prefix.replace("\\n", "\n"), form)


@dataclass(frozen=True)
class CheckOptions(PromptOptions):
    """Prompts to check a checkpoint on, which may be left out."""

    prompts: Annotated[
        str, typer.Option(help="Compare logits on these; by default on random tokens.")
    ] = ""


@dataclass(frozen=True)
class AblationOptions:
    """What is done to a head."""

    panel: ClassVar[str] = "Ablation"
    ablation: Annotated[
        str,
        typer.Option(
            help="undifferentiated, scaling, zero, mean, mean-over-heads, resample or "
            "mean-by-position."
        ),
    ] = "undifferentiated"
    epsilon: Annotated[
        float | None,
        typer.Option(
            help="Factor of undifferentiated or scaling ablation; with --via q or k by default "
            "1e-5."
        ),
    ] = None
    via: Annotated[
        Literal["pattern", "q", "k", "v", "z"] | None,
        typer.Option(
            help="What it acts on: pattern, q or k (undifferentiated); z or v (scaling); q, k or v "
            "(mean-over-heads)."
        ),
    ] = None

    reference: Annotated[
        str | None,
        typer.Option(
            help="Prompts that mean, resample and mean-by-position take outputs from; of mean by "
            "default those that are scored."
        ),
    ] = None

    def chosen(self) -> sh.Ablation:
        """The ablation that the four mean together."""
        from safehead_tl.ablations import resolve_ablation

        what: sh.Ablation
        if self.ablation in ("resample", "mean-by-position"):
            if self.reference is None:
                raise SafeheadError(f"--ablation {self.ablation} needs --reference PROMPTS")
            draws: Literal["random", "mean"]
            draws = "random" if self.ablation == "resample" else "mean"
            what = sh.ResampleAblation(self.reference, draws)
        else:
            what = resolve_ablation(self.ablation)
            if isinstance(what, sh.MeanAblation):
                what = sh.MeanAblation(self.reference)
            elif self.reference is not None:
                raise SafeheadError(f"--reference does not go with {what.name} ablation")
        epsilon, via = self.epsilon, self.via
        if isinstance(what, sh.UndifferentiatedAttention) and via in (None, "pattern", "q", "k"):
            if epsilon is None and via in ("q", "k"):
                epsilon = 1e-5
            return sh.UndifferentiatedAttention(epsilon, via or "pattern")
        if isinstance(what, sh.MeanOverHeads) and epsilon is None and via in (None, "q", "k", "v"):
            return sh.MeanOverHeads(via or "q")
        if isinstance(what, sh.ScalingContribution) and via in (None, "z", "v"):
            return sh.ScalingContribution(what.epsilon if epsilon is None else epsilon, via or "z")
        if via is not None:
            raise SafeheadError(f"--via {via} does not go with {what.name} ablation")
        if epsilon is not None:
            raise SafeheadError(f"--epsilon does not go with {what.name} ablation: leave it out")
        return what


@dataclass(frozen=True)
class RotationOptions:
    """How the prompts' states are compared: arguments of `sahara`, by the same names."""

    panel: ClassVar[str] = "States"
    rank: Annotated[int, typer.Option(help="How many singular vectors to compare.")] = 1
    centre: Annotated[bool, typer.Option(help="Subtract the mean state first.")] = False
    site: Annotated[
        Literal["final_norm", "resid_post"], typer.Option(help="Where the states are read.")
    ] = "final_norm"
    reading: Annotated[
        Literal["left", "left-nested", "right", "right-nested", "legacy-dim0"],
        typer.Option(
            help="How the paper's Eq. 11 is read: left or right singular vectors, of nested "
            "subspaces or not. legacy-dim0 is no score: it is what the paper's released code "
            "computed by mistake, in degrees."
        ),
    ] = "left"


@dataclass(frozen=True)
class LimitOptions:
    """What a run may take."""

    panel: ClassVar[str] = "How it runs"
    max_bytes: Annotated[
        str | None, typer.Option(help="Memory to use beyond the model's weights, such as 2GiB.")
    ] = None
    max_rows: Annotated[
        int | None,
        typer.Option(help="Most (head, prompt) pairs or texts in a pass: less takes less memory."),
    ] = None

    def chosen(self) -> sh.Run:
        """As the library takes it."""
        told = {field.name for field in fields(sh.Run)} & {field.name for field in fields(self)}
        return sh.Run(**{name: getattr(self, name) for name in told}, on=self._on)

    @property
    def _on(self) -> str | sh.Ray | None:
        return None


@dataclass(frozen=True)
class RunOptions(LimitOptions):
    """How a run runs: the fields of `Run`."""

    run_dir: Annotated[
        Path | None,
        typer.Option(help="Keep finished pieces here; the same command again goes on from them."),
    ] = None
    shard: Annotated[
        str | None,
        typer.Option(
            help="Do a share of what is missing in --run-dir, with other processes: '2/8', or "
            "'auto', as torchrun or Slurm say."
        ),
    ] = None
    ray: Annotated[
        bool, typer.Option("--ray", help="Run on a Ray cluster: one on this machine, or --address.")
    ] = False
    replicas: Annotated[int, typer.Option(min=1, help="With --ray: how many processes.")] = 2
    gpus: Annotated[
        float | None, typer.Option(help="With --ray: of each replica; by default 1, if there are.")
    ] = None
    address: Annotated[
        str | None, typer.Option(help="With --ray: of a running cluster, such as auto.")
    ] = None

    @property
    @override
    def _on(self) -> str | sh.Ray | None:
        if self.ray and self.shard is not None:
            raise SafeheadError("--ray starts its shards itself: leave out --shard")
        return sh.Ray(self.replicas, self.address, self.gpus) if self.ray else self.shard


@dataclass(frozen=True)
class ServerOptions:
    """Servers that answer."""

    panel: ClassVar[str] = "Server"
    server: Annotated[
        str | None,
        typer.Option(
            help="An OpenAI-compatible API that answers with --heads ablated, such as "
            "http://localhost:8000/v1: it serves what export wrote. Key in OPENAI_API_KEY."
        ),
    ] = None
    served_model: Annotated[
        str | None, typer.Option(help="The model's name there: by default of serve, its directory.")
    ] = None
    served_checkpoint: Annotated[
        Path | None,
        typer.Option(help="The local copy of what is served, if the server's is not here."),
    ] = None
    original_server: Annotated[
        str | None, typer.Option(help="The API that answers for the model as it is.")
    ] = None
    original_model: Annotated[str | None, typer.Option(help="That model's name there.")] = None

    def chosen(self, run: sh.Run) -> sh.Run:
        """The same run, with these servers if any are named."""
        original = None
        if self.original_server is not None:
            if self.server is None or self.original_model is None:
                raise SafeheadError("--original-server needs --server and --original-model")
            original = sh.Server(self.original_server, self.original_model)
        if self.server is None:
            return run
        if self.served_model is None:
            raise SafeheadError("--server needs --served-model: the model's name there")
        if run.on is not None:
            raise SafeheadError("--server answers to one process: leave out --shard and --ray")
        server = sh.Server(self.server, self.served_model, self.served_checkpoint, original)
        return replace(run, on=server)


@dataclass(frozen=True)
class ScanOptions(RunOptions):
    """How a scan runs, and which heads it scores exactly."""

    shared_prefix: Annotated[
        bool, typer.Option(help="Run what all prompts begin with once for each head.")
    ] = True
    screen: Annotated[
        str,
        typer.Option(
            help="off: every head exactly. auto: all to first order, exactly those that may be "
            "highest, and the others together in blocks. A number: so many exactly.",
            callback=_screen,
        ),
    ] = "off"


@dataclass(frozen=True)
class NullOptions:
    """Other prompts, by which chance is judged."""

    panel: ClassVar[str] = "Null"
    against: Annotated[
        str | None,
        typer.Option(
            help="Harmless prompts, from a source like --prompts, or scores of such that --save "
            "wrote: which heads score higher in --prompts, with p-values for all heads at once."
        ),
    ] = None

    def load(self, prompts: PromptOptions, screen: str) -> list[str] | HeadScores | None:
        """The other prompts, in as many as `--prompts` are limited to; or their scores."""
        if self.against is None:
            return None
        if screen != "off":
            raise SafeheadError("--against needs every head's exact score: leave out --screen")
        if self.against.endswith(".safetensors"):
            return sh.HeadScores.load(self.against)
        split = None if Path(self.against).is_file() else prompts.split
        return replace(prompts, prompts=self.against, column=None, split=split).load()

    @staticmethod
    def test(
        scores: HeadScores,
        others: list[str] | HeadScores | None,
        scan: Callable[..., HeadScores],
        run: sh.Run,
    ) -> Significance | None:
        """What the other prompts, which `scan` scores, say of the scores."""
        if others is None:
            return None
        if isinstance(others, list):
            where = None if run.run_dir is None else Path(run.run_dir) / "against"
            others = scan(others, run=replace(run, run_dir=where))
        return scores.significant(others)


@dataclass(frozen=True)
class JudgeOptions:
    """Who judges answers."""

    panel: ClassVar[str] = "Judge"
    judge: Annotated[
        str | None,
        typer.Option(
            help="keyword (the default), keyword-reference or refusal-prefix; with --judge-model "
            "or --judge-url, what it is asked: compliance, xstest, strongreject, jailbreakbench, "
            "harmbench, llama-guard, or a text with {prompt} and {response}."
        ),
    ] = None
    judge_model: Annotated[
        str | None,
        typer.Option(
            help="A local directory or hub id that judges; with --judge-url its name there."
        ),
    ] = None
    judge_url: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible API that judges; key in OPENAI_API_KEY."),
    ] = None

    def chosen(self) -> str | sh.Judge:
        """The judge that the three mean together."""
        asked = self.judge or "compliance"
        if self.judge_url is not None:
            if self.judge_model is None:
                raise SafeheadError("--judge-url needs --judge-model: the model's name there")
            return sh.EndpointJudge(self.judge_url, self.judge_model, question=asked)
        if self.judge_model is None:
            return self.judge or "keyword"
        return sh.LlmJudge(self.judge_model, question=asked)


@dataclass(frozen=True)
class ViewOptions:
    """What a page shows of heads: arguments of `report` and `explore`, by the same names."""

    panel: ClassVar[str] = "View"
    scores: Annotated[
        Path | None, typer.Option(help="Scores of these prompts that --save wrote.")
    ] = None
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Length of answers; 0: none; default: 48, or what fits.")
    ] = None
    marked: Annotated[str | None, typer.Option(help="Heads to mark, such as 'L1H3 L2H6'.")] = None
    marked_as: Annotated[str, typer.Option(help="What they are.")] = "marked"

    def chosen(self) -> dict[str, Any]:
        """As the library takes it."""
        scores = None if self.scores is None else sh.HeadScores.load(self.scores)
        told = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**told, "scores": scores, "marked": chosen_heads(self.marked)}


@dataclass(frozen=True)
class DecodingOptions:
    """How texts are generated: arguments of `evaluate`, by the same names."""

    panel: ClassVar[str] = "Answers"
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Most tokens of a response; default: 128, or what fits.")
    ] = None
    top_k: Annotated[
        int | None, typer.Option(help="Draw each token from so many; default: the most likely one.")
    ] = None
    temperature: Annotated[float, typer.Option(help="For --top-k.")] = 1.0
    samples: Annotated[int, typer.Option(help="Responses for each prompt, with --top-k.")] = 1
    seed: Annotated[int, typer.Option(help="Of the draws of tokens and of random heads.")] = 0


def chosen_screen(text: str) -> Screen:
    """What the option `--screen` means."""
    words: dict[str, Screen] = {"off": "off", "auto": "auto"}
    if text in words:
        return words[text]
    if re.fullmatch("[1-9][0-9]{0,8}", text):
        return int(text)
    raise SafeheadError(f"--screen {text}: say off, auto, or how many heads to score exactly")


def chosen_heads(text: str | None) -> tuple[Head, ...]:
    """The heads that `--heads` names, or those of the group in the file that it names."""
    group = chosen_group(text)
    if group is not None:
        return group.heads
    return () if text is None else read_heads(text)


def chosen_group(text: str | None) -> HeadGroup | None:
    """The group in the file that `--heads` names, if it names one."""
    return sh.HeadGroup.load(text) if text is not None and text.endswith(".safetensors") else None
