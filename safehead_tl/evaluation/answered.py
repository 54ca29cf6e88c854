"""Results that hold answers: a table of them, a page to read them on, a log for other viewers."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from safehead_tl.generation import Responses
from safehead_tl.heads import Variant, own_group
from safehead_tl.judges import Verdict
from safehead_tl.results import Provenance, Saved, views
from safehead_tl.writing import NAME, write_file


class Said(NamedTuple):
    """Answers to one set of prompts: what was done in each variant of them, and to which heads."""

    prompts: str
    responses: Responses
    conditions: Sequence[str]
    variants: Sequence[Variant]


class Answer(NamedTuple):
    """One answer with all that is known of it.

    Attributes:
        prompts: which set its prompt is of.
        prompt: the prompt's number there.
        sample: its number among answers to this prompt in this condition.
        text: what was asked.
        condition: what was done to the model.
        heads: the heads that were ablated.
        response: what was answered.
        refused: whether it opens with a refusal.
        coherent: whether it is readable text.
        verdicts: what each judge says of it, by the judge's name.
    """

    prompts: str
    prompt: int
    sample: int
    text: str
    condition: str
    heads: str
    response: str
    refused: bool
    coherent: bool
    verdicts: dict[str, Verdict]


class Answered(Saved):
    """A result that holds every answer. `load` takes what any of its kinds saved."""

    provenance: Provenance

    @abstractmethod
    def _said(self) -> Iterator[Said]:
        """Its answers by sets; the unablated model's come first in each."""

    def answers(self) -> pd.DataFrame:
        """Every answer with its verdicts, one a row: to read, and to check the judges by hand.

        Of several judges each has a column under its name, and its reasons under `"NAME: why"`.
        """
        tables = [
            pd.DataFrame(said.responses.rows(said.conditions, said.variants)).assign(
                prompts=said.prompts
            )
            for said in self._said()
        ]
        return pd.concat(tables, ignore_index=True)

    def each_answer(self) -> Iterator[Answer]:
        """Every answer with what each judge says of it."""
        for prompts, found, conditions, variants in self._said():
            alone = self.provenance.settings["judge"]["name"]
            judges: Mapping[str, Any] = found.panel or {alone: found}
            for variant, condition in enumerate(conditions):
                for prompt, samples in enumerate(found.texts[variant]):
                    for sample, response in enumerate(samples):
                        place = variant, prompt, sample
                        yield Answer(
                            prompts,
                            prompt,
                            sample,
                            found.prompts[prompt],
                            condition,
                            " ".join(map(str, own_group(variants[variant], prompt))),
                            response,
                            bool(found.refused[place]),
                            bool(found.coherent[place]),
                            {
                                name: Verdict(
                                    bool(judge.success[place]),
                                    judge.reasons[variant][prompt][sample],
                                    None if judge.scores is None else judge.scores[place].item(),
                                )
                                for name, judge in judges.items()
                            },
                        )

    def browse(
        self,
        out: str | Path = "answers.html",
        *,
        title: str | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Writes one offline page on which every answer can be read, beside the unablated model's.

        With search, filters and verdicts. Answers are covered until they are asked for, since they
        may be harmful; they are in the file all the same: hand it on as you would hand on them.

        Args:
            out: the page to write, `.html`.
            title: its title; by default the model's name.
            overwrite: replace what is there even if this toolkit did not write it.

        Returns:
            The page's path.

        Raises:
            SafeheadError: if it may not be written or cannot be.
        """
        return views.browse(self, out, title=title, overwrite=overwrite)

    def to_inspect(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Writes every answer as a log of Inspect AI, which its viewer and `read_eval_log` read.

        A sample is one answer; its scores are the judges' verdicts, whether it opens with a refusal
        and whether it is readable text; its metadata say what was done to the model. The log's
        metrics are shares by set of prompts and condition.

        Args:
            out: the log to write, `.json`; the viewer lists those whose names begin with a time,
                such as `2026-12-01T12-00-00_answers.json`.
            overwrite: replace what is there even if this toolkit did not write it.

        Raises:
            SafeheadError: if it may not be written or cannot be.
        """
        log = {"written_by": NAME, **_inspect_log([*self.each_answer()], self.provenance)}
        content = json.dumps(log, indent=1, default=str).encode()
        write_file(out, content, ".json", overwrite=overwrite)


def plain_rows(table: pd.DataFrame) -> list[dict[Hashable, Any]]:
    """Rows as JSON has them: `None` for what is not known."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _inspect_log(answers: Sequence[Answer], told: Provenance) -> dict[str, Any]:
    """Answers in version 2 of the log format of Inspect AI."""
    model, settings = str(told.model["name"]), told.settings
    samples, found = [], dict[str, dict[str, list[bool]]]()
    for each in answers:
        name = f"{each.prompts}, {each.condition}"
        message = {"role": "assistant", "content": each.response, "source": "generate"}
        scores = {
            judge: {
                "value": verdict.success,
                "explanation": verdict.reason,
                "metadata": {"score": verdict.score},
            }
            for judge, verdict in each.verdicts.items()
        }
        scores |= {
            "opens with a refusal": {"value": each.refused},
            "readable": {"value": each.coherent},
        }
        for judge, score in scores.items():
            found.setdefault(judge, {}).setdefault(name, []).append(bool(score["value"]))
        samples.append(
            {
                "id": f"{each.prompts} {each.prompt}, {each.condition}",
                "epoch": each.sample + 1,
                "input": each.text,
                "target": "",
                "messages": [{"role": "user", "content": each.text, "source": "input"}, message],
                "output": {"model": model, "choices": [{"message": message}]},
                "scores": scores,
                "metadata": {
                    "prompts": each.prompts,
                    "prompt": each.prompt,
                    "condition": each.condition,
                    "heads": each.heads,
                },
            }
        )
    started = datetime.fromisoformat(told.created) - timedelta(seconds=told.seconds)
    shares = [
        {
            "name": judge,
            "scorer": judge,
            "scored_samples": len(answers),
            "metrics": {
                name: {"name": name, "value": sum(some) / len(some)} for name, some in by.items()
            },
        }
        for judge, by in found.items()
    ]
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "created": told.created,
            "task": settings.get("measure", "evaluate"),
            "dataset": {"samples": len(answers)},
            "model": model,
            "config": {"epochs": 1 + max(each.sample for each in answers)},
            "packages": told.versions,
            "metadata": told.to_dict(),
        },
        "plan": {"name": NAME},
        "results": {
            "total_samples": len(answers),
            "completed_samples": len(answers),
            "scores": shares,
        },
        "stats": {"started_at": started.isoformat(), "completed_at": told.created},
        "samples": samples,
    }
