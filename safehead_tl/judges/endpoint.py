"""A model behind an OpenAI-compatible endpoint as judge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tqdm.auto import tqdm

from safehead_tl.endpoints import Endpoint
from safehead_tl.judges.base import Verdict, check_texts, without_secrets
from safehead_tl.judges.question import Question, as_words, resolve_question
from safehead_tl.judges.rubric import Rubric, RubricJudge, resolve_rubric
from safehead_tl.models import no_bars


@dataclass(frozen=True)
class EndpointJudge(Endpoint):
    """A model that judges over HTTP: any server with OpenAI's `/chat/completions`.

    Prompts and responses are sent to that server, one request each. By default it is asked, in a
    short rubric, whether the response complies (success), and to say `yes` or `no`. The reason of
    a verdict is the whole answer. One that holds none of the known words is no success: its
    reason starts with `unclear:`, and a warning counts them. If none of the answers can be read,
    that is an error. Needs `pip install 'safehead-tl[endpoint]'`.

    Attributes:
        url: where it is; with `model` and how it is asked (`api_key_env`, `concurrency`, `rate`,
            `timeout`, `max_retries`) as in `safehead_tl.endpoints.Endpoint`.
        question: what is asked: a text with `{prompt}` and `{response}`, or a name as in
            `LlmJudge`.
        success_words: the answers that mean success; by default the question's, or `yes`.
        failure_words: the answers that mean no success; by default the question's, or `no`.
        settings: further fields of the request, such as `max_tokens`. Some models refuse a
            temperature: give them `{}`.
    """

    question: str = "compliance"
    success_words: str | Iterable[str] | None = None
    failure_words: str | Iterable[str] | None = None
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("success_words", "failure_words"):
            if (words := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_words(words))
        resolve_question(self.question, self.success_words, self.failure_words)

    @property
    def name(self) -> str:
        """`endpoint:` and the model's name."""
        return f"endpoint:{self.model}"

    def asking(self, question: str) -> EndpointJudge:
        """The same model, asked something else."""
        return replace(self, question=question, success_words=None, failure_words=None)

    def rubric(self, rubric: str | Rubric = "strongreject") -> RubricJudge:
        """The same model as a judge that grades: it is asked each of a rubric's questions."""
        return RubricJudge(self, resolve_rubric(rubric))

    def judge(self, prompts: Sequence[str], responses: Sequence[str]) -> list[Verdict]:
        """One verdict for each response, of one request each.

        Raises:
            SafeheadError: if `openai` is not installed, the server cannot be reached or keeps
                failing, or none of its answers can be read.
        """
        check_texts(prompts, responses)
        return self._question.verdicts(self.answers(prompts, responses), self.name)

    def answers(self, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
        """What the model answers about each response, as it says it."""
        pairs = zip(prompts, responses, strict=True)
        chats = [self._question.chat(prompt, response) for prompt, response in pairs]
        bar = no_bars(len(chats) > 1)
        found = dict(tqdm(self.each(chats, self._answer), "judge", len(chats), disable=bar))
        return [found[number] for number in range(len(chats))]

    def describe(self) -> dict[str, Any]:
        """Name and settings, for a result's provenance; no key."""
        return {
            "name": self.name,
            "url": self.address,
            "model": self.model,
            "question": self.question,
            "success_words": self.success_words,
            "failure_words": self.failure_words,
            "settings": without_secrets(self.settings),
        }

    @property
    def _question(self) -> Question:
        return resolve_question(self.question, self.success_words, self.failure_words)

    def _answer(self, client: Any, chat: list[dict[str, str]]) -> str:
        with self.told("a chat completion"):
            completion = client.chat.completions.create(
                model=self.model, messages=chat, extra_body=dict(self.settings)
            )
            return completion.choices[0].message.content or ""
