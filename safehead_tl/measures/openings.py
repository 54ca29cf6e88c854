"""How answers open: tokens with which a refusal begins, and tokens with which help does."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.models import Model, check_model, next_token_logits
from safehead_tl.prompts import Prompts, Template
from safehead_tl.scan import Run, Search

OFTENER = 3
"""How many times as often as on the other side a token opens answers on its own."""


@dataclass(frozen=True)
class Openings:
    """First tokens of refusals and of compliant answers, by their ids.

    Attributes:
        refusal: ids with which a refusal begins.
        compliance: ids with which an answer begins that does as it is asked; none of `refusal`.

    Example:
        >>> model = sh.load_model("demo")
        >>> openings = sh.Openings.of_texts(model, refusal=["sorry"], compliance=["bend", "fold"])
        >>> model.to_string(list(openings.refusal))
        'sorry'
    """

    refusal: tuple[int, ...]
    compliance: tuple[int, ...]

    def __post_init__(self) -> None:
        for name in ("refusal", "compliance"):
            given = getattr(self, name)
            ids = tuple(dict.fromkeys(given)) if isinstance(given, Iterable) else ()
            if not ids or not all(isinstance(each, int) and each >= 0 for each in ids):
                raise SafeheadError(
                    f"{name}={given!r}: give one token id or more, as numbers; for texts there is "
                    "Openings.of_texts"
                )
            object.__setattr__(self, name, ids)
        both = {*self.refusal} & {*self.compliance}
        if both:
            raise SafeheadError(
                f"tokens {sorted(both)} open refusals and compliant answers alike: leave them out "
                "of one"
            )

    @classmethod
    def of_texts(cls, model: Model, refusal: Iterable[str], compliance: Iterable[str]) -> Openings:
        """The first tokens of texts, each as it stands and behind a space.

        Args:
            model: the model, whose tokenizer reads them.
            refusal: how refusals open, such as `["Sorry", "I cannot"]`.
            compliance: how compliant answers open, such as `["Sure", "Here"]`.

        Raises:
            SafeheadError: if the tokenizer does not know a text, or a token would open both.
        """
        return cls(_first_tokens(model, refusal), _first_tokens(model, compliance))

    @classmethod
    def of_answers(
        cls,
        model: Model,
        harmful: Prompts,
        harmless: Prompts,
        *,
        template: Template = "auto",
        run: Run = Run(),
    ) -> Openings:
        """The model's own most likely first tokens, on the side on which they open more answers.

        One belongs to a side if it opens answers there at least `OFTENER` times as often as on the
        other: a model that refuses a harmless prompt too still has its refusals told from its help.

        Args:
            model: the model, as it is: it should refuse the ones and help with the others.
            harmful: prompts that it refuses.
            harmless: prompts that it helps with.
            template: as in `ships`.
            run: how it runs; one pass of each prompt leaves no pieces to keep.

        Raises:
            SafeheadError: if one kind has no first token of its own.

        Example:
            >>> model = sh.load_model("demo")
            >>> found = sh.Openings.of_answers(model, "demo/harmful", "demo/benign")
            >>> model.to_string(list(found.refusal))
            'sorry'
        """
        firsts = []
        for prompts in (harmful, harmless):
            search = Search.start(model, prompts, template, "zero", run)
            with torch.no_grad():
                found = [
                    next_token_logits(model, some).argmax(-1)
                    for some in search.original.split(search.passes.rows)
                ]
            firsts.append(torch.cat(found).tolist())
        own = [
            [
                each
                for each in dict.fromkeys(mine)
                if mine.count(each) * len(theirs) >= OFTENER * theirs.count(each) * len(mine)
            ]
            for mine, theirs in (firsts, firsts[::-1])
        ]
        for name, found in zip(("harmful", "harmless"), own, strict=True):
            if not found:
                raise SafeheadError(
                    f"answers to {name} prompts open with nothing that opens answers to the "
                    f"others {OFTENER} times less often: does this model refuse? Otherwise give "
                    "Openings.of_texts"
                )
        return cls(*map(tuple, own))

    def describe(self, model: Model) -> dict[str, Any]:
        """For a result's provenance: ids, and how a model's tokenizer writes them.

        Raises:
            SafeheadError: if the model has no such tokens.
        """
        ids = {"refusal": self.refusal, "compliance": self.compliance}
        self.on(model)
        tokenizer = model.tokenizer
        assert tokenizer is not None
        words = {
            f"{name}_words": [str(tokenizer.decode([each])) for each in some]
            for name, some in ids.items()
        }
        return {**{name: list(some) for name, some in ids.items()}, **words}

    def on(self, model: Model) -> tuple[Int[Tensor, " refusal"], Int[Tensor, " compliance"]]:
        """The ids on a model's device.

        Raises:
            SafeheadError: if the model has no such tokens.
        """
        largest = max(*self.refusal, *self.compliance)
        if largest >= model.cfg.d_vocab:
            raise SafeheadError(
                f"token {largest} is beyond the model's vocabulary of {model.cfg.d_vocab}: were "
                "these openings found with another tokenizer?"
            )
        refusal, compliance = (
            torch.tensor(ids, device=model.cfg.device) for ids in (self.refusal, self.compliance)
        )
        return refusal, compliance


def _first_tokens(model: Model, texts: Iterable[str]) -> tuple[int, ...]:
    check_model(model)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise SafeheadError("this model has no tokenizer: give it one with model.set_tokenizer")
    if isinstance(texts, str):
        raise SafeheadError(f"{texts!r} is one text: put it in brackets")
    found = list[int]()
    for text in texts:
        firsts = [
            ids[0]
            for written in (text, f" {text}")
            if (ids := tokenizer(written, add_special_tokens=False)["input_ids"])
        ]
        known = [
            each
            for each in firsts
            if each != tokenizer.unk_token_id and str(tokenizer.decode([each])).strip()
        ]
        if not known:
            raise SafeheadError(
                f"the model's tokenizer does not know how {text!r} begins: give another text, or "
                "Openings.of_answers, which takes the model's own"
            )
        found += known
    return tuple(dict.fromkeys(found))
