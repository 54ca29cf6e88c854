"""A model's tokenizer: loading it, and giving it to a `HookedTransformer` as it is."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, no_type_check

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from safehead_tl.errors import SafeheadError
from safehead_tl.models.foreign import foreign
from safehead_tl.models.identity import Model, is_bridge

MOST_TOKENS = 10_000_000
"""The highest id of a token that can be meant."""
STEPS = 1_000_000
"""Lines that a chat template may run: half a second, and a thousand times what real ones take."""


def load_tokenizer(
    source: str | Path | PreTrainedTokenizerBase, *, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """A tokenizer as it is, or the one saved at `source`, without running code that comes with it.

    Raises:
        FileNotFoundError: if there is none.
        SafeheadError: if there is one that cannot be read.
    """
    if isinstance(source, PreTrainedTokenizerBase):
        return source
    told = (
        f"no tokenizer could be loaded from {source}: save it there with "
        "tokenizer.save_pretrained, or pass tokenizer=..."
    )
    directory = Path(source)
    if directory.is_dir() and not any(directory.glob("*token*")):
        raise FileNotFoundError(told)
    with foreign(told):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
        tokenizer("a")
        if max(tokenizer.get_vocab().values(), default=0) > MOST_TOKENS:  # gaps are counted through
            raise SafeheadError(f"{told}: it has token {max(tokenizer.get_vocab().values())}")
    return tokenizer


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts a BOS token in front of a text by itself."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]


def attach_tokenizer(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Gives a model its own copy of a tokenizer: TransformerLens would force a BOS onto it.

    A bridge would even load another one, by the name that the tokenizer says it came from.
    """
    tokenizer = copy.deepcopy(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.eos_token
    object.__setattr__(model, "_tokenizer" if is_bridge(model) else "tokenizer", tokenizer)
    model.cfg.tokenizer_prepends_bos = adds_bos(tokenizer)


def write_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation in the tokenizer's chat template, up to where the answer begins.

    A chat template is a program that comes with a checkpoint. Transformers runs it where it reaches
    nothing; here it is also stopped when it does not end.

    Raises:
        SafeheadError: if the template refuses the conversation, fails or does not end.
    """
    roles = " and ".join(f"a {message['role']} message" for message in messages)
    with foreign(f"the chat template refuses {roles}"), _bounded():
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
        )
    assert isinstance(text, str)
    return text


@contextmanager
def _bounded() -> Iterator[None]:
    """Stops a template after `STEPS` lines of it and calls of Python functions."""
    before, steps = sys.gettrace(), 0

    @no_type_check  # which would be set up anew for each text, and run at each line
    def count(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > STEPS:
            raise SafeheadError("the chat template does not end: it loops")
        return count if frame.f_code.co_filename == "<template>" else None

    sys.settrace(count)
    try:
        yield
    finally:
        sys.settrace(before)
