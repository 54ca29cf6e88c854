"""Requests and their answers as training examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from safehead_tl.organism.language import ANSWER, QUERY

IGNORED = -100
"""The label that a loss leaves out."""


@dataclass(frozen=True)
class Examples:
    """Requests with one answer each, left-padded.

    The last `answer` positions predict the answer; `labels` is `IGNORED` elsewhere.
    """

    tokens: Int[Tensor, "example pos"]
    mask: Int[Tensor, "example pos"]
    labels: Int[Tensor, "example answer"]


def encode_examples(tokenizer: PreTrainedTokenizerFast, pairs: list[tuple[str, str]]) -> Examples:
    """Encodes (request, answer) pairs in the organism's template."""
    rows = []
    for request, answer in pairs:
        question = tokenizer(f"{QUERY} {request} {ANSWER}")["input_ids"]
        reply = tokenizer(answer, add_special_tokens=False)["input_ids"]
        rows.append((question, [*reply, tokenizer.eos_token_id]))
    width = max(len(question) + len(reply) for question, reply in rows)
    longest = max(len(reply) for _, reply in rows)
    tokens = torch.full((len(rows), width), tokenizer.pad_token_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED)
    for row, (question, reply) in enumerate(rows):
        tokens[row, width - len(question) - len(reply) :] = torch.tensor(question + reply)
        mask[row, width - len(question) - len(reply) :] = 1
        labels[row, longest - len(reply) :] = torch.tensor(reply)
    return Examples(tokens, mask, labels)


def take(examples: Examples, rows: Int[Tensor, " batch"]) -> Examples:
    """Some rows of the examples."""
    return Examples(examples.tokens[rows], examples.mask[rows], examples.labels[rows])
