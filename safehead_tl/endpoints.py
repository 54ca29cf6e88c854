"""Models behind OpenAI-compatible APIs: where one is, and how requests are sent to it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from safehead_tl.errors import SafeheadError

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

SHOWN = 300
"""Characters of what a server says of a failure."""


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible API. Needs `pip install 'safehead-tl[endpoint]'`.

    Attributes:
        url: of the API, such as `http://localhost:8000/v1`.
        model: the model's name there.
        api_key_env: the environment variable with the key, read when something is asked and kept
            nowhere. If it is not set, none is sent that a server would accept: local ones need
            none.
        concurrency: requests at the same time.
        rate: most requests begun in a second, those that are tried again apart; `None`: no limit.
        timeout: seconds to wait for an answer.
        max_retries: how often a request is tried again after a rate limit, a server's failure, a
            timeout or a broken connection, waiting longer each time, or as long as the server says.
    """

    url: str = field(repr=False)
    model: str
    _: KW_ONLY
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 4
    rate: float | None = None
    timeout: float = 60.0
    max_retries: int = 5

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise SafeheadError(
                f"{self.url!r} is not the address of an API: give such as 'http://localhost:8000/v1'"
            )
        if self.concurrency < 1 or self.max_retries < 0 or self.timeout <= 0:
            raise SafeheadError("concurrency and timeout must be positive, max_retries at least 0")
        if self.rate is not None and not self.rate > 0:
            raise SafeheadError(
                f"rate={self.rate!r}: give a number of requests in a second, or none"
            )

    @property
    def address(self) -> str:
        """The url without what may be secret in it: user, password, query."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    @contextmanager
    def client(self) -> Iterator[Any]:
        """A client of the `openai` package, which tries again by itself."""
        try:
            from openai import OpenAI
        except ImportError as error:
            raise SafeheadError(
                f"{self.address} is asked through the openai package: "
                "pip install 'safehead-tl[endpoint]'"
            ) from error
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/chat")
        with OpenAI(
            base_url=urlunsplit((parts.scheme, parts.netloc, path, "", "")),
            default_query=dict(parse_qsl(parts.query)),
            api_key=os.environ.get(self.api_key_env) or "none",
            timeout=self.timeout,
            max_retries=self.max_retries,
        ) as client:
            yield client

    def each(
        self, items: Sequence[Asked], ask: Callable[[Any, Asked], Answer]
    ) -> Iterator[tuple[int, Answer]]:
        """Asks about every item, several at the same time.

        After a failure nothing more is asked; what was under way is given before it is raised.

        Args:
            items: what to ask about.
            ask: asks about one of them, with the client that it is given.

        Yields:
            An item's number and its answer, as soon as it is there.
        """
        if not items:
            return
        wait, failed = self._pace(), list[BaseException]()

        def asked(item: Asked) -> Answer:
            if not failed:
                wait()
            if failed:
                raise failed[0]
            try:
                return ask(client, item)
            except BaseException as error:
                failed.append(error)
                raise

        with self.client() as client:
            pool = ThreadPoolExecutor(min(self.concurrency, len(items)))
            try:
                numbers = {pool.submit(asked, item): number for number, item in enumerate(items)}
                for future in as_completed(numbers):
                    if future.exception() is None:
                        yield numbers[future], future.result()
            finally:
                pool.shutdown(cancel_futures=True)
        if failed:
            raise failed[0]

    def _pace(self) -> Callable[[], None]:
        """Something to call before each request, which returns when `rate` allows the next."""
        lock, due = threading.Lock(), [0.0]

        def wait() -> None:
            if self.rate is not None:
                with lock:
                    mine = max(due[0], time.monotonic())
                    due[0] = mine + 1 / self.rate
                time.sleep(max(0.0, mine - time.monotonic()))

        return wait

    @contextmanager
    def told(self, kind: str) -> Iterator[None]:
        """Says in a sentence why a request had no answer, or not one of the kind that it asked for.

        Args:
            kind: what the answer should be, such as `"a chat completion"`.
        """
        from openai import APIStatusError, OpenAIError

        try:
            yield
        except SafeheadError:
            raise
        except APIStatusError as error:
            known = os.environ.get(self.api_key_env) or error.status_code not in (401, 403)
            key = "" if known else f" ({self.api_key_env} is not set)"
            detail = error.body.get("detail") if isinstance(error.body, dict) else None
            more = "" if detail is None else f" - {str(detail)[:SHOWN]}"  # where FastAPI has it
            raise SafeheadError(
                f"{self.address} refused a request with status {error.status_code}: "
                f"{error.message}{more}{key}"
            ) from error
        except OpenAIError as error:
            raise SafeheadError(
                f"{self.address} could not be asked: {error} {error.__cause__ or ''}"
            ) from error
        except (AttributeError, IndexError, TypeError, ValueError) as error:
            raise SafeheadError(
                f"{self.address} answered something else than {kind}: is it the address of an API, "
                "as in 'http://localhost:8000/v1'?"
            ) from error
