"""A local model as judge: one that is asked, or one that classifies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Verdict, check_texts, without_secrets
from safehead_tl.judges.local import LocalModel, is_classifier, load_judge_config, load_local
from safehead_tl.judges.question import Question, as_words, resolve_question
from safehead_tl.judges.rubric import Rubric, RubricJudge, resolve_rubric
from safehead_tl.models import load_tokenizer

SUCCESSFUL_LABELS = ("unsafe", "harmful", "jailbreak", "compliance", "complied", "yes")
"""Names of a classifier's labels that mean success, unless it is told."""
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LlmJudge:
    """A local Transformers model that judges. What success means is for its question to say.

    A causal model is asked and answers greedily; a sequence classifier gives its likeliest label,
    and as score the probability of those that mean success.
    It is loaded when first needed, and stays loaded. The reason of a verdict is the answer. One
    that holds none of the known words is no success: its reason starts with `unclear:`, and a
    warning counts them. If none of the answers can be read, that is an error.

    Attributes:
        model: a directory or hub id, or a model (with `tokenizer`).
        question: what is asked. `"harmbench"`: the prompt of HarmBench's classifiers, such as
            `cais/HarmBench-Llama-2-13b-cls` (success: `yes`, the behaviour is there).
            `"llama-guard"`: request and response as turns in the model's own chat template
            (success: `unsafe`). `"compliance"`, `"xstest"`, `"strongreject"`,
            `"jailbreakbench"`: questions for any chat model, that differ in what they count as
            success (docs/evaluation.md). Or a text with `{response}` in it and perhaps `{prompt}`;
            for a sequence classifier always that, such as `"{response}"`.
        success_words: the answers or labels that mean success, in any case. By default those of
            the question, `yes` for a text of your own, and for a classifier the one label whose
            name says so.
        failure_words: the answers that mean no success. By default those of the question, or `no`;
            for a classifier all other labels.
        tokenizer: a tokenizer, or where to load one from; by default that of `model`.
        chat: whether to put the question into the model's chat template, as the user's turn. By
            default if it has one, but not with `"harmbench"`, which is a whole prompt.
        max_new_tokens: room for the answer.
        max_rows: most texts in a pass.
        dtype: `"auto"` (as it was saved), `"float32"`, `"bfloat16"` or `"float16"`.
        device: by default the first CUDA device if there is one, else the CPU.
        loading: passed on to Transformers' `from_pretrained`, such as `revision` or `device_map`.
    """

    model: str | Path | PreTrainedModel
    question: str = "harmbench"
    success_words: str | Iterable[str] | None = None
    failure_words: str | Iterable[str] | None = None
    tokenizer: str | Path | PreTrainedTokenizerBase | None = None
    chat: bool | None = None
    max_new_tokens: int = 8
    max_rows: int = 8
    dtype: str = "auto"
    device: str | None = None
    loading: Mapping[str, Any] = field(default_factory=dict)
    _loaded: list[LocalModel] = field(init=False, default_factory=list, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("success_words", "failure_words"):
            if (words := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_words(words))
        resolve_question(self.question, self.success_words, self.failure_words)
        if self.dtype not in DTYPES:
            raise SafeheadError(f"dtype {self.dtype!r} is not known: use {', '.join(DTYPES)}")
        if self.max_rows < 1 or self.max_new_tokens < 1:
            raise SafeheadError("max_rows and max_new_tokens must be at least 1")
        if isinstance(self.model, PreTrainedModel):
            if self.tokenizer is None:
                raise SafeheadError("a model that is given as it is needs its tokenizer=...")
            if self.device is not None or self.dtype != "auto" or self.loading:
                raise SafeheadError("a model is used as it is: leave out dtype, device, loading")

    @property
    def name(self) -> str:
        """The question's name; `llm` for a text of one's own."""
        return "llm" if "{response}" in self.question else self.question

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """One verdict for each response.

        Raises:
            SafeheadError: if the model cannot be loaded, is of another kind than the question, a
                text is too long for it, or none of its answers can be read.
        """
        check_texts(prompts, responses)
        if not responses:
            return []
        if self._local.classifies:
            return self._classified(self._local, prompts, responses)
        return self._question.verdicts(self.answers(prompts, responses), self.name)

    def answers(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """What a model that is asked answers about each response, as it says it."""
        local = self._local
        if local.classifies:
            raise SafeheadError(f"{self._source} is a sequence classifier, which is asked nothing")
        chat = self.chat
        if chat is None:
            chat = self.question != "harmbench" and local.tokenizer.chat_template is not None
        pairs = zip(prompts, responses, strict=True)
        if chat or self._question.template is None:
            rows = local.encode_chats([self._question.chat(*pair) for pair in pairs])
        else:
            rows = local.encode([self._question.fill(*pair) for pair in pairs])
        return local.generate(rows, self.max_new_tokens, self.max_rows)

    def describe(self) -> dict[str, Any]:
        """Name and settings, for a result's provenance."""
        given = isinstance(self.model, PreTrainedModel)
        dtype = str(self.model.dtype) if given else self.dtype  # type: ignore[union-attr]
        return {
            "name": self.name,
            "model": self._source,
            "question": self.question,
            "success_words": self.success_words,
            "failure_words": self.failure_words,
            "chat": self.chat,
            "max_new_tokens": self.max_new_tokens,
            "dtype": dtype.removeprefix("torch."),
            "tokenizer": str(getattr(self.tokenizer, "name_or_path", self.tokenizer)),
            "loading": without_secrets(self.loading),
        }

    @property
    def _question(self) -> Question:
        return resolve_question(self.question, self.success_words, self.failure_words)

    @property
    def _source(self) -> str:
        given = isinstance(self.model, PreTrainedModel)
        return str(self.model.name_or_path if given else self.model)  # type: ignore[union-attr]

    @property
    def classifies(self) -> bool:
        """Whether it is a sequence classifier, which is asked nothing; by its config alone."""
        if isinstance(self.model, PreTrainedModel):
            return is_classifier([type(self.model).__name__])
        return is_classifier(load_judge_config(self.model, self.loading).architectures)

    def asking(self, question: str) -> LlmJudge:
        """The same model, loaded once for both, asked something else."""
        other = replace(self, question=question, success_words=None, failure_words=None)
        object.__setattr__(other, "_loaded", self._loaded)
        return other

    def rubric(self, rubric: str | Rubric = "strongreject") -> RubricJudge:
        """The same model as a judge that grades: it is asked each of a rubric's questions."""
        return RubricJudge(self, resolve_rubric(rubric))

    @property
    def _local(self) -> LocalModel:
        if self._loaded:
            return self._loaded[0]
        if isinstance(self.model, PreTrainedModel):
            assert self.tokenizer is not None
            local = LocalModel(self.model.eval(), load_tokenizer(self.tokenizer))
        else:
            local = load_local(self.model, self.tokenizer, self.dtype, self.device, self.loading)
        self._loaded.append(local)
        return local

    def _classified(
        self, local: LocalModel, prompts: Sequence[str], responses: Sequence[str]
    ) -> list[Verdict]:
        if "{response}" not in self.question:
            raise SafeheadError(
                f"{self._source} is a sequence classifier, which is asked nothing: question="
                f"{self.question!r} does not suit it. Use question='{{response}}', or such as "
                "'{prompt}\\n{response}', as it was trained"
            )
        wanted = _successful(local.labels, self.success_words)
        texts = [self._question.fill(*pair) for pair in zip(prompts, responses, strict=True)]
        verdicts = []
        for chances in local.classify(local.encode(texts), self.max_rows):
            share, label = max(zip(chances, local.labels, strict=True))
            score = sum(
                chance for chance, each in zip(chances, local.labels, strict=True) if each in wanted
            )
            said = f"{label} ({share:.2f})"
            verdicts.append(Verdict(label in wanted, said, min(1.0, score)))
        return verdicts


def _successful(labels: list[str], words: Iterable[str] | None) -> set[str]:
    """The labels that mean success."""
    told = {word.casefold() for word in (SUCCESSFUL_LABELS if words is None else words)}
    found = {label for label in labels if label.casefold() in told}
    wrong = len(found) != 1 if words is None else len(found) != len(told)
    if wrong or len(found) == len(labels):
        raise SafeheadError(
            f"the classifier's labels are {', '.join(labels)}: name those that mean success, and "
            "not all of them, with success_words=..."
        )
    return found
