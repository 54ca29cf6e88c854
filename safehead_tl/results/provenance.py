"""Where a result came from: enough to know what was run, and to run it again."""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

PACKAGES = ("safehead-tl", "transformer-lens", "transformers", "torch")


@functools.cache
def versions() -> Mapping[str, str]:
    """Of Python and the packages that scores depend on."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return MappingProxyType({"python": platform.python_version(), **packages})


def text_hashes(texts: Iterable[str]) -> list[str]:
    """The beginnings of the SHA-256 of texts, white space apart: to tell which ones two sets share.

    Texts cannot be read from them, but a known text can be told to be among them.
    """
    plain = (" ".join(text.split()) for text in texts)
    return [hashlib.sha256(text.encode()).hexdigest()[:16] for text in plain]


@dataclass(frozen=True)
class Provenance:
    """What a result was computed from.

    Attributes:
        model: name, revision, hashes of config and weights, dtype, device, sizes.
        ablation: its name and settings.
        prompts: template, number of prompts, and a SHA-256 of their texts, of each text, and of
            their tokens.
        settings: what else the measure was told.
        versions: of Python and the packages.
        seconds: wall time; of a run in several sittings, the sum.
        forward_passes: work, in units of one prompt (padded to the longest) through all layers;
            a layer that is run in part counts whole.
        created: when it was finished (UTC, ISO 8601).
    """

    model: Mapping[str, Any]
    ablation: Mapping[str, Any]
    prompts: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    seconds: float
    forward_passes: float
    created: str

    @classmethod
    def now(
        cls,
        model: Mapping[str, Any],
        ablation: Mapping[str, Any],
        prompts: Mapping[str, Any],
        settings: Mapping[str, Any],
        seconds: float,
        forward_passes: float,
    ) -> Provenance:
        """A provenance with this moment and the installed versions."""
        return cls(
            model=model,
            ablation=ablation,
            prompts=prompts,
            settings=settings,
            versions=dict(versions()),
            seconds=round(seconds, 3),
            forward_passes=round(forward_passes, 2),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )

    def shared_prompts(self, texts: Iterable[str]) -> int | None:
        """How many of some prompts it was computed from too; `None` if that is not known."""
        known = self.prompts.get("each_hash")
        return None if known is None else sum(each in known.split() for each in text_hashes(texts))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)
