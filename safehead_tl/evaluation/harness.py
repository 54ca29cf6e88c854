"""A model of this toolkit as lm-eval wants one. Imports lm-eval: import this file late."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm.auto import tqdm

from safehead_tl.errors import SafeheadError
from safehead_tl.models import Model, all_logits, end_tokens, next_logits, no_bars, require_finite

logger = logging.getLogger("safehead_tl")

Scored = tuple[float, bool]
"""A continuation's log-likelihood, and whether each of its tokens was the likeliest."""


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped
    """Scores and generates for lm-eval, through whatever hooks the model has at the time.

    Texts are encoded as lm-eval's own `HFLM` does (spaces at a context's end go to the
    continuation), with two differences: a BOS token is put in front where the model is set to
    have one (`cfg.default_prepend_bos`), and an EOS token never at the end. Batches are padded on
    the left, with an explicit mask. `rows` counts the texts that were run.
    """

    def __init__(self, model: Model, batch_size: int, *, progress: bool = False, label: str = ""):
        super().__init__()
        if model.tokenizer is None:
            raise SafeheadError("this model has no tokenizer: give it one with model.set_tokenizer")
        self.model = model
        self.tokenizer: Any = model.tokenizer
        self.batch_size = batch_size
        self.progress = progress
        self.label = label
        self.rows = 0

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        """A text's tokens; with a BOS token in front, if the model has one, unless told not to."""
        ids: list[int] = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        bos = self.tokenizer.bos_token_id
        wanted = add_special_tokens is not False and self.model.cfg.default_prepend_bos
        return [bos, *ids] if wanted and bos is not None and ids[:1] != [bos] else ids

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Scored]:
        """Scores the continuation of each `(context, continuation)`."""
        scored: list[Scored] = super().loglikelihood(requests, disable_tqdm=True)
        return scored

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts, in windows of the model's context; each token once."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.model.cfg.n_ctx,
                context_len=1,
            ):
                windows.append((("", text), *make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[number] += value
        return totals

    @torch.no_grad()
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[Scored]:
        """Scores encoded continuations. What differs in the last token only is run once."""
        window = self.model.cfg.n_ctx + 1  # the last token is predicted, not read
        runs: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        cut = 0
        for number, (texts, context, continuation) in enumerate(requests):
            if not 0 < len(continuation) < window:
                raise SafeheadError(
                    f"the continuation {texts[1]!r} has {len(continuation)} tokens of its own; the "
                    f"model can score 1 to {window - 1}"
                )
            whole = [*context, *continuation]
            cut += len(whole) > window
            runs.setdefault(tuple(whole[-window:-1]), []).append((number, continuation))
        self._warn_of_cuts(cut, len(requests))
        found: dict[int, Scored] = {}
        for rows in self._batches(list(runs), "scoring"):
            logits = all_logits(self.model, *self._padded(rows))
            for row, row_logits in zip(rows, logits, strict=True):
                for number, continuation in runs[row]:
                    read = row_logits[-len(continuation) :]
                    text = repr(requests[number][0])
                    require_finite(self.model, read[None], [text], "the logits")
                    found[number] = _score(read, continuation)
        return [found[number] for number in range(len(requests))]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continues each `(context, settings)` greedily, up to the first of its stop strings.

        Raises:
            SafeheadError: if a task samples, or asks for more tokens than the context has.
        """
        groups: dict[tuple[tuple[str, ...], int], dict[tuple[int, ...], list[int]]] = {}
        cut = 0
        for number, request in enumerate(requests):
            context, told = request.args
            stops, new = self._limits(told)
            ids = self.tok_encode(context)
            room = self.model.cfg.n_ctx - new
            cut += len(ids) > room
            runs = groups.setdefault((stops, new), {})
            runs.setdefault(tuple(ids[-room:]), []).append(number)
        self._warn_of_cuts(cut, len(requests))
        found: dict[int, str] = {}
        for (stops, new), runs in groups.items():
            for rows in self._batches(list(runs), "generating"):
                for row, text in zip(rows, self._continue(rows, stops, new), strict=True):
                    found.update(dict.fromkeys(runs[row], text))
        return [found[number] for number in range(len(requests))]

    def _limits(self, told: dict[str, Any]) -> tuple[tuple[str, ...], int]:
        """Stop strings, and the most new tokens, of a task's settings for generation."""
        settings = normalize_gen_kwargs(told)
        if settings["do_sample"]:
            raise SafeheadError(
                f"generation_kwargs {told} ask for sampling: here texts are generated greedily, "
                "so set do_sample: false in the task"
            )
        if settings["max_gen_toks"] >= self.model.cfg.n_ctx:
            raise SafeheadError(
                f"{settings['max_gen_toks']} new tokens leave no room for a prompt in the model's "
                f"context of {self.model.cfg.n_ctx}: set max_gen_toks in the task's "
                "generation_kwargs"
            )
        return tuple(settings["until"]), settings["max_gen_toks"]

    @torch.no_grad()
    def _continue(
        self, rows: Sequence[tuple[int, ...]], stops: tuple[str, ...], max_new_tokens: int
    ) -> list[str]:
        """Greedy continuations of one batch, without the stop strings."""
        tokens, mask = self._padded(rows)
        step = next_logits(self.model, len(rows), True)
        ends = set(end_tokens(self.model))
        new: list[list[int]] = [[] for _ in rows]
        texts = [""] * len(rows)
        running = set(range(len(rows)))
        for _ in range(max_new_tokens):
            logits = step(tokens, mask)
            require_finite(self.model, logits, list(map(self.tokenizer.decode, rows)), "the logits")
            best = logits.argmax(-1)
            for row, token in enumerate(best.tolist()):
                if row not in running:
                    continue
                if token in ends:
                    running.remove(row)
                    continue
                new[row].append(token)
                texts[row] = self.tokenizer.decode(new[row], skip_special_tokens=True)
                if any(stop and stop in texts[row] for stop in stops):
                    running.remove(row)
            if not running:
                break
            tokens = torch.cat([tokens, best[:, None]], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        return [postprocess_generated_text(text, list(stops), None) for text in texts]

    def _batches(
        self, rows: list[tuple[int, ...]], doing: str
    ) -> Iterator[Sequence[tuple[int, ...]]]:
        """Batches of similar length, the longest first: what does not fit in memory shows early."""
        rows = sorted(rows, key=len, reverse=True)
        label = f"{self.label}: {doing}" if self.label else doing
        with tqdm(total=len(rows), desc=label, unit="text", disable=no_bars(self.progress)) as bar:
            for start in range(0, len(rows), self.batch_size):
                batch = rows[start : start + self.batch_size]
                yield batch
                self.rows += len(batch)
                bar.update(len(batch))

    def _padded(
        self, rows: Sequence[tuple[int, ...]]
    ) -> tuple[Int[Tensor, "row pos"], Int[Tensor, "row pos"]]:
        """A left-padded batch and its mask."""
        width = max(map(len, rows))
        tokens = torch.zeros(len(rows), width, dtype=torch.long)  # padding is masked
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            tokens[number, width - len(row) :] = torch.tensor(row)
            mask[number, width - len(row) :] = 1
        return tokens.to(self.model.cfg.device), mask.to(self.model.cfg.device)

    def _warn_of_cuts(self, cut: int, total: int) -> None:
        if cut:
            logger.warning(
                "%d of %d texts are longer than the model's context of %d tokens: their beginnings "
                "were left out",
                cut,
                total,
                self.model.cfg.n_ctx,
            )


def _score(logits: Float[Tensor, "pos vocab"], continuation: list[int]) -> Scored:
    wanted = torch.tensor(continuation, device=logits.device)
    log_probs = logits.float().log_softmax(-1)
    chosen = log_probs.gather(1, wanted[:, None]).sum()
    return float(chosen), bool((log_probs.argmax(-1) == wanted).all())
