"""A model behind an OpenAI-compatible endpoint as judge."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from tqdm.auto import tqdm

from safehead_tl.errors import SafeheadError
from safehead_tl.judges.base import Verdict, check_texts, without_secrets
from safehead_tl.judges.question import Question, as_words, resolve_question
from safehead_tl.judges.rubric import Rubric, RubricJudge, resolve_rubric
from safehead_tl.models import no_bars


@dataclass(frozen=True)
class EndpointJudge:
    """A model that judges over HTTP: any server with OpenAI's `/chat/completions`.

    Prompts and responses are sent to that server, one request each. By default it is asked, in a
    short rubric, whether the response complies (success), and to say `yes` or `no`. The reason of
    a verdict is the whole answer. One that holds none of the known words is no success: its
    reason starts with `unclear:`, and a warning counts them. If none of the answers can be read,
    that is an error. Needs `pip install 'safehead-tl[endpoint]'`.

    Attributes:
        url: of the API, such as `http://localhost:8000/v1`.
        model: the model's name there.
        question: what is asked: a text with `{prompt}` and `{response}`, or a name as in
            `LlmJudge`.
        success_words: the answers that mean success; by default the question's, or `yes`.
        failure_words: the answers that mean no success; by default the question's, or `no`.
        api_key_env: the environment variable with the key, read when the judge is used and kept
            nowhere. If it is not set, none is sent that a server would accept: local ones need
            none.
        concurrency: requests at the same time.
        timeout: seconds to wait for an answer.
        max_retries: how often a request is tried again after a rate limit, a server's failure or
            a broken connection, waiting longer each time.
        settings: further fields of the request, such as `max_tokens`. Some models refuse a
            temperature: give them `{}`.
    """

    url: str = field(repr=False)
    model: str
    question: str = "compliance"
    success_words: str | Iterable[str] | None = None
    failure_words: str | Iterable[str] | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 4
    timeout: float = 60.0
    max_retries: int = 5
    settings: Mapping[str, Any] = field(default_factory=lambda: {"temperature": 0})

    def __post_init__(self) -> None:
        for name in ("success_words", "failure_words"):
            if (words := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_words(words))
        resolve_question(self.question, self.success_words, self.failure_words)
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise SafeheadError(
                f"{self.url!r} is not the address of an API: give such as 'http://localhost:8000/v1'"
            )
        if self.concurrency < 1 or self.max_retries < 0 or self.timeout <= 0:
            raise SafeheadError("concurrency and timeout must be positive, max_retries at least 0")

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
        if not responses:
            return []
        try:
            from openai import OpenAI
        except ImportError as error:
            raise SafeheadError(
                "a judge behind an endpoint needs the openai package: "
                "pip install 'safehead-tl[endpoint]'"
            ) from error
        pairs = zip(prompts, responses, strict=True)
        chats = [self._question.chat(prompt, response) for prompt, response in pairs]
        with (
            OpenAI(
                base_url=_base(self.url),
                default_query=dict(parse_qsl(urlsplit(self.url).query)),
                api_key=os.environ.get(self.api_key_env) or "none",
                timeout=self.timeout,
                max_retries=self.max_retries,
            ) as client,
            ThreadPoolExecutor(min(self.concurrency, len(chats))) as pool,
        ):
            answers = pool.map(lambda chat: self._answer(client, chat), chats)
            bar = tqdm(answers, desc="judge", total=len(chats), disable=no_bars(len(chats) > 1))
            return list(bar)

    def describe(self) -> dict[str, Any]:
        """Name and settings, for a result's provenance; no key."""
        return {
            "name": self.name,
            "url": self._address,
            "model": self.model,
            "question": self.question,
            "success_words": self.success_words,
            "failure_words": self.failure_words,
            "settings": without_secrets(self.settings),
        }

    @property
    def _question(self) -> Question:
        return resolve_question(self.question, self.success_words, self.failure_words)

    @property
    def _address(self) -> str:
        """The url without what may be secret in it: user, password, query."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def _answer(self, client: Any, chat: list[dict[str, str]]) -> str:
        from openai import APIStatusError, OpenAIError

        try:
            completion = client.chat.completions.create(
                model=self.model, messages=chat, extra_body=dict(self.settings)
            )
            return completion.choices[0].message.content or ""
        except APIStatusError as error:
            key = "" if os.environ.get(self.api_key_env) else f" ({self.api_key_env} is not set)"
            raise SafeheadError(
                f"{self._address} refused a request with status {error.status_code}: "
                f"{error.message}{key if error.status_code in (401, 403) else ''}"
            ) from error
        except OpenAIError as error:
            raise SafeheadError(
                f"{self._address} could not be asked: {error} {error.__cause__ or ''}"
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise SafeheadError(
                f"{self._address} answered something else than a chat completion: is it the "
                "address of an API, as in 'http://localhost:8000/v1'?"
            ) from error


def _base(url: str) -> str:
    """The address that `/chat/completions` is put after."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/").removesuffix("/chat/completions")
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))
