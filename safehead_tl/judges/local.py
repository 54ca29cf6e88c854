"""A local model that answers texts: a causal one in words, a sequence classifier with a label."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from safehead_tl.errors import SafeheadError
from safehead_tl.models import load_config, load_original, load_tokenizer, no_bars, write_chat

logger = logging.getLogger("safehead_tl")


@dataclass(frozen=True)
class LocalModel:
    """A model with its tokenizer, both as Transformers has them."""

    model: Any
    tokenizer: Any

    @property
    def classifies(self) -> bool:
        """Whether it gives labels instead of words."""
        return is_classifier([type(self.model).__name__])

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts, with the special tokens that the tokenizer adds."""
        ids: list[list[int]] = self.tokenizer(list(texts))["input_ids"]
        return ids

    def encode_chats(self, chats: Sequence[list[dict[str, str]]]) -> list[list[int]]:
        """Token ids of conversations in the model's chat template, up to its own turn."""
        if self.tokenizer.chat_template is None:
            raise SafeheadError(
                "the judge's tokenizer has no chat template, so there is no telling how it wants "
                "to be asked: choose another format, or chat=False"
            )
        texts = [write_chat(self.tokenizer, chat) for chat in chats]
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    @torch.inference_mode()
    def generate(self, rows: list[list[int]], max_new_tokens: int, max_rows: int) -> list[str]:
        """The greedy continuation of each row of token ids, without special tokens."""
        self._check_lengths(rows, max_new_tokens)
        end = self.model.generation_config.eos_token_id  # one, several, or none
        if end is None:
            end = self.tokenizer.eos_token_id
        pad = self._pad_id()
        answers: list[str] = []
        for batch in _batches(rows, max_rows):
            tokens, mask = _padded(batch, pad, left=True)
            generated = self.model.generate(
                input_ids=tokens.to(self.model.device),
                attention_mask=mask.to(self.model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                temperature=None,  # a checkpoint's own sampling settings would only be warned of
                top_p=None,
                top_k=None,
                pad_token_id=pad,
                eos_token_id=end,
            )
            new = generated[:, tokens.shape[1] :]
            answers += self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return answers

    @torch.inference_mode()
    def classify(self, rows: list[list[int]], max_rows: int) -> list[list[float]]:
        """The probability of each label, of each row of token ids."""
        self._check_lengths(rows, 0)
        pad = self.model.config.pad_token_id
        # A decoder reads its last token that is not padding; it must be told which that is.
        size = 1 if pad is None else max_rows
        found: list[list[float]] = []
        for batch in _batches(rows, size):
            tokens, mask = _padded(batch, 0 if pad is None else pad, left=False)
            logits = self.model(
                input_ids=tokens.to(self.model.device), attention_mask=mask.to(self.model.device)
            ).logits
            found += logits.float().softmax(-1).tolist()
        return found

    @property
    def labels(self) -> list[str]:
        """A classifier's labels, in the order of its outputs."""
        names = self.model.config.id2label
        return [str(names[index]) for index in range(self.model.config.num_labels)]

    def _pad_id(self) -> int:
        for candidate in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if candidate is not None:
                return int(candidate)
        return 0  # masked in any case

    def _check_lengths(self, rows: list[list[int]], new: int) -> None:
        config = self.model.config.get_text_config()
        positions = getattr(config, "max_position_embeddings", None)
        room = min(self.tokenizer.model_max_length, positions or self.tokenizer.model_max_length)
        for index, row in enumerate(rows):
            if len(row) + new > room:
                raise SafeheadError(
                    f"responses[{index}] makes {len(row)} tokens with its question and {new} for "
                    f"the answer, and the judge reads {room}: generate shorter responses, or "
                    "choose a judge that reads more"
                )


def is_classifier(architectures: Sequence[str] | None) -> bool:
    """Whether a model of such a class classifies sequences."""
    return str((architectures or [""])[0]).endswith("ForSequenceClassification")


def load_judge_config(source: str | Path, loading: Mapping[str, Any]) -> PretrainedConfig:
    """The config of what is saved there."""
    keys = ("revision", "token", "cache_dir", "trust_remote_code")
    return load_config(source, **{key: loading[key] for key in keys if key in loading})


def load_local(
    source: str | Path,
    tokenizer: str | Path | PreTrainedTokenizerBase | None,
    dtype: str,
    device: str | None,
    loading: Mapping[str, Any],
) -> LocalModel:
    """Loads a causal model or a sequence classifier, whichever is saved there.

    Raises:
        SafeheadError: if there is none, or some of its weights are missing.
        FileNotFoundError: if it has no tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    logger.info("Loading judge %s", source)
    try:
        classifies = is_classifier(load_judge_config(source, loading).architectures)
        kind = AutoModelForSequenceClassification if classifies else AutoModelForCausalLM
        model: Any = load_original(source, dtype, kind, **loading)
    except SafeheadError as error:
        raise SafeheadError(
            f"no judge could be loaded from {source}: {error} A judge is a causal language model "
            "or a sequence classifier, in a directory or on the hub"
        ) from error
    if "device_map" not in loading and "quantization_config" not in loading:
        model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    trust = bool(loading.get("trust_remote_code"))
    tokens = load_tokenizer(source if tokenizer is None else tokenizer, trust_remote_code=trust)
    return LocalModel(model, tokens)


def _batches(rows: list[list[int]], size: int) -> Iterator[list[list[int]]]:
    starts = range(0, len(rows), size)
    for start in tqdm(starts, desc="judge", unit="batch", disable=no_bars(len(starts) > 1)):
        yield rows[start : start + size]


def _padded(
    rows: list[list[int]], pad: int, *, left: bool
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Rows as one tensor, and a mask with 0 where there is padding."""
    width = max(map(len, rows))
    tokens = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(tokens)
    for index, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return tokens, mask
