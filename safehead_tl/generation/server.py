"""Answers from a server: what it serves is compared with what is asked, its answers with ours."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safehead_tl.ablations import Ablation
from safehead_tl.endpoints import Endpoint
from safehead_tl.errors import SafeheadError
from safehead_tl.generation.batched import Row
from safehead_tl.generation.decoding import Decoding
from safehead_tl.heads import Head, Variant, is_of_each, read_heads
from safehead_tl.models import Model, checkpoint_directory, describe, end_tokens, known_names
from safehead_tl.prompts import PromptBatch
from safehead_tl.scan import Elsewhere
from safehead_tl.writing import NAME


class Reply(NamedTuple):
    """What a model said to one prompt.

    Attributes:
        text: the continuation, without special tokens.
        tokens: how many it has, its end token included.
        ended: whether it ended by itself, and not at `max_new_tokens`.
    """

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Server(Endpoint, Elsewhere):
    """A server that answers for a model: `Run(on=Server(...))`, for `generate` and `evaluate`.

    It serves a checkpoint that `export` wrote, through OpenAI's `/completions`: `vllm serve`, or
    `transformers serve` (`safehead serve` prints both). Templates are filled here. vLLM is sent
    token ids and sends them back. A server that takes texts only is sent one that the model's
    tokenizer reads as those tokens. An answer counts if the server read as many tokens as were
    meant.

    The card in the checkpoint's `config.json` must name the heads and the ablation that are asked
    for, and the model at hand as its source. What has no card must be that model itself. The card
    is read in the directory that the server says it serves, or that `model` names, if it is here,
    or in `checkpoint`: that the server holds the weights which lie beside that card is taken on
    trust.

    In `evaluate` the server answers with the heads ablated, and `original` without. All other
    answers (random heads) and the next token's divergence are computed here, by hooks; the result's
    provenance says under `served` what came from where.

    Greedy answers are those of `generate`, as far as the server's arithmetic is (give it the
    checkpoint's dtype). With `top_k` the draws are the server's own: each has a seed made from
    `seed`, prompt and sample, but not the one draw that all variants share here.

    Attributes:
        url: of the API, such as `http://localhost:8000/v1`.
        model: the model's name there; by default the directory that was served.
        checkpoint: the local copy of what is served, if the server's directory is not here.
        original: the server of the model as it is; its `url` may be the same.
        api_key_env: with `concurrency`, `rate`, `timeout` and `max_retries` as in
            `safehead_tl.endpoints.Endpoint`.

    Example:
        >>> server = sh.Server("http://localhost:8000/v1", "/models/ablated", concurrency=16)
        >>> sh.Run(on=server, run_dir="answers").on.address
        'http://localhost:8000/v1'
    """

    answers_only = True

    checkpoint: str | Path | None = None
    original: Server | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original is not None and self.original.original is not None:
            raise SafeheadError(
                "original= is the server of the model as it is: it has no original="
            )


@dataclass(frozen=True)
class Served:
    """A server, and what it was found to serve.

    Attributes:
        server: the server.
        heads: the heads that are ablated in its weights.
    """

    server: Server
    heads: frozenset[Head]

    def answers(self, variant: Variant) -> bool:
        """Whether it answers for a variant."""
        return not is_of_each(variant) and self.heads == set(variant)

    @property
    def words(self) -> str:
        """What it serves, in words."""
        named = " ".join(map(str, sorted(self.heads)))
        return f"the model with {named} ablated" if named else "the model as it is"

    def describe(self) -> dict[str, Any]:
        """As plain values, for provenance: who answers for which heads."""
        return {
            "heads": list(map(str, sorted(self.heads))),
            "url": self.server.address,
            "model": self.server.model,
        }

    def ask(
        self, model: Model, batch: PromptBatch, rows: Sequence[Row], decoding: Decoding
    ) -> Iterator[tuple[int, Reply]]:
        """Asks for texts, several at a time; gives each with its row's number as it comes."""
        if not rows:
            return
        server = self.server
        with server.client() as client, server.told("a completion"):
            by_ids = _takes_ids(client, server, _ids(batch, rows[0].prompt))
        if not by_ids and decoding.top_k is not None and server.concurrency > 1:
            raise SafeheadError(
                f"{server.address} draws all requests that it has at a time from one seed: give "
                "Server(..., concurrency=1), or leave top_k out"
            )

        def ask(client: Any, row: Row) -> Reply:
            ids = _ids(batch, row.prompt)
            body = (_body_of_ids if by_ids else _body_of_text)(model, decoding, row, ids)
            with server.told("a completion that counts its tokens"):
                completion = client.completions.create(model=server.model, **body)
                return _reply(model, server, row, ids, completion)

        yield from server.each(rows, ask)


def find_served(server: Server, model: Model, ablation: Ablation) -> list[Served]:
    """What a server and its `original` serve, if that is of use.

    Args:
        server: the server.
        model: the model at hand.
        ablation: what is to be done to heads, prepared.

    Raises:
        SafeheadError: if what it serves cannot be told, or is not made from this model by this
            ablation.
    """
    found = [Served(server, _heads_of(server, model, ablation))]
    if server.original is not None:
        other = Served(server.original, _heads_of(server.original, model, ablation))
        if other.heads:
            raise SafeheadError(
                f"original= serves {other.words}: give a server of the model as it is"
            )
        found.append(other)
    return found


def config_of(directory: Path) -> dict[str, Any]:
    """A checkpoint's config; under `NAME`, step by step, what this toolkit did to it, if it did.

    Raises:
        SafeheadError: if it cannot be read.
    """
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        return {**config, NAME: [dict(step) for step in config.get(NAME) or []]}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise SafeheadError(
            f"{directory} has no config.json that can be read: give the directory that `export` "
            f"wrote ({error})"
        ) from error


def _heads_of(server: Server, model: Model, ablation: Ablation) -> frozenset[Head]:
    """The heads that are ablated in what a server serves; none if it is the model at hand."""
    described = describe(model)
    source = described["weights"] or described["name"]
    where = _checkpoint_of(server)
    if _place(where) == _place(source):
        return frozenset()
    told = f"{server.address} serves {where}, and the model at hand is {source}"
    if isinstance(where, str):
        raise SafeheadError(
            f"{told}: to have what was done to it read, name the local copy of the export with "
            "Server(..., checkpoint=DIRECTORY)"
        )
    steps = config_of(where)[NAME]
    if not steps or steps[-1].get("what") != "ablation":
        raise SafeheadError(
            f"{told}, from which no card says that it was exported: serve an export"
        )
    card = steps[-1]
    made = card.get("source"), card.get("revision")
    if (_place(str(made[0])), made[1]) != (_place(source), described["revision"]):
        raise SafeheadError(f"{told}; its card names {made[0]} as its source: load that model")
    asked = json.loads(json.dumps(ablation.describe(), default=str))
    if card.get("ablation") != asked:
        raise SafeheadError(
            f"{server.address} serves an export by another ablation, "
            f"{_short(card.get('ablation'))}; asked for is {_short(asked)}: ask for the same, or "
            "serve another export"
        )
    try:
        return frozenset(read_heads(card["heads"]))
    except (LookupError, TypeError, SafeheadError) as error:
        raise SafeheadError(
            f"the card in {where} names no heads: export it again ({error})"
        ) from error


def _checkpoint_of(server: Server) -> Path | str:
    """Where what is served lies, or its name if it is not here."""
    with server.client() as client, server.told("a list of models"):
        from openai import APIStatusError

        try:
            listed = client.with_options(max_retries=0).models.list().data
        except APIStatusError:  # transformers serve has none where nothing was downloaded
            listed = []
        roots = [getattr(each, "root", None) for each in listed if each.id == server.model]
        root = next(filter(None, roots), None)
    if server.checkpoint is not None:
        given = Path(server.checkpoint)
        if root is not None and Path(root).is_dir() and _place(root) != _place(given):
            raise SafeheadError(
                f"{server.address} serves {root}, and not checkpoint={str(given)!r}: leave that out"
            )
        return given
    name = root or server.model
    return Path(name) if Path(name).is_dir() else str(name)


def _place(source: str | Path) -> Path | str:
    """A checkpoint's directory, or its name on the hub: the same for the same, however written."""
    try:
        with checkpoint_directory(source) as local:
            if local is not None:
                return local.resolve()
    except FileNotFoundError:
        pass
    return known_names().get(str(source).lower(), str(source))


def _short(ablation: Any) -> str:
    """An ablation's settings, without its label."""
    if not isinstance(ablation, Mapping):
        return repr(ablation)
    return ", ".join(f"{key}={value!r}" for key, value in ablation.items() if key != "label")


def _ids(batch: PromptBatch, prompt: int) -> list[int]:
    """A prompt's tokens, without padding."""
    ids: list[int] = batch.tokens[prompt][batch.mask[prompt].bool()].tolist()
    return ids


def _takes_ids(client: Any, server: Server, ids: list[int]) -> bool:
    """Whether a server takes token ids, by asking for one token."""
    from openai import BadRequestError, UnprocessableEntityError

    try:
        client.completions.create(model=server.model, prompt=ids, max_tokens=1, temperature=0)
    except (BadRequestError, UnprocessableEntityError):
        return False
    return True


def _body_of_ids(model: Model, decoding: Decoding, row: Row, ids: list[int]) -> dict[str, Any]:
    """A request as vLLM takes it, with all that the checkpoint's own settings could change."""
    drawn = decoding.top_k is not None
    more = {"top_k": decoding.top_k} if drawn else {}
    return {
        "prompt": ids,
        "max_tokens": decoding.steps,
        "temperature": decoding.temperature if drawn else 0.0,
        "top_p": 1.0,
        **_seed(decoding, row),
        "extra_body": {
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "stop_token_ids": end_tokens(model),
            "return_token_ids": True,
            **more,
        },
    }


def _body_of_text(model: Model, decoding: Decoding, row: Row, ids: list[int]) -> dict[str, Any]:
    """A request as `transformers serve` takes it: a text, and all settings in one field."""
    drawn = decoding.top_k is not None
    settings = {
        "max_new_tokens": decoding.steps,
        "do_sample": drawn,
        "temperature": decoding.temperature,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "eos_token_id": end_tokens(model),
        **({"top_k": decoding.top_k} if drawn else {}),
    }
    settled = {"generation_config": json.dumps(settings)}
    tokenizer = model.tokenizer
    assert tokenizer is not None
    for behind in (0, 1):  # with the BOS token that is written in it, or without one that is added
        text = tokenizer.decode(ids[behind:])
        if tokenizer(text)["input_ids"] == ids:
            return {"prompt": text, **_seed(decoding, row), "extra_body": settled}
    raise SafeheadError(
        "this server takes texts only, and there is no text that its tokenizer reads as the tokens "
        f"of prompts[{row.prompt}] in this template: serve the checkpoint with vLLM, which takes "
        "token ids"
    )


def _seed(decoding: Decoding, row: Row) -> dict[str, int]:
    seed = decoding.seed_of(row.prompt, row.sample)
    return {} if decoding.top_k is None else {"seed": seed}


def _reply(model: Model, server: Server, row: Row, ids: list[int], completion: Any) -> Reply:
    """An answer, if the server read what was meant."""
    choice, usage = completion.choices[0], completion.usage
    if usage.prompt_tokens != len(ids):
        raise SafeheadError(
            f"{server.address} read {usage.prompt_tokens} tokens where prompts[{row.prompt}] has "
            f"{len(ids)}: its tokenizer is another, or puts a second BOS token in front. Serve the "
            "checkpoint with the tokenizer that lies in its directory"
        )
    if choice.finish_reason not in ("stop", "length"):
        raise SafeheadError(
            f"{server.address} broke off an answer ({choice.finish_reason!r}): ask again with the "
            "same run_dir"
        )
    new = getattr(choice, "token_ids", None)
    text, ended = choice.text, choice.finish_reason == "stop"
    if new:
        assert model.tokenizer is not None
        text = model.tokenizer.decode(new, skip_special_tokens=True)
        ended = ended or new[-1] in end_tokens(model)
    return Reply(text, int(usage.completion_tokens), ended)
