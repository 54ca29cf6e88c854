"""Results on disk: tensors with a JSON header in one safetensors file, never pickle."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor

from safehead_tl.errors import SafeheadError
from safehead_tl.writing import NAME, RESULT, write_file

FORMAT = 4
SUFFIX = ".safetensors"
DIGEST = RESULT + rb"{\"digest\": \""
"""What a file begins with, behind the eight bytes of its header's length. The digest comes next."""

BLANK = b"0" * 64

Kept = TypeVar("Kept", bound="Saved")


def save_result(
    path: str | Path,
    kind: str,
    tensors: dict[str, Tensor],
    header: dict[str, Any],
    *,
    overwrite: bool = False,
) -> None:
    """Saves tensors and a header for JSON as a kind of result, with a SHA-256 of the file."""
    told = {"digest": BLANK.decode(), "format": FORMAT, "kind": kind, **header}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    content = safetensors.torch.save(contiguous, metadata={NAME: json.dumps(told)})
    digest = hashlib.sha256(content).hexdigest().encode()
    write_file(path, content.replace(BLANK, digest, 1), SUFFIX, overwrite=overwrite)


def load_result(path: str | Path, *kinds: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads what `save_result` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        SafeheadError: if it is no result of these kinds, or any bit of it is not as it was written.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    content = path.read_bytes()
    start = 8 + len(DIGEST)
    end = start + len(BLANK)
    digest = hashlib.sha256(content[:start] + BLANK + content[end:]).hexdigest().encode()
    if content[8:start] != DIGEST:
        raise SafeheadError(
            f"{path} is no result in format {FORMAT} of safehead_tl: give one, or use the version "
            "that wrote it"
        )
    if content[start:end] != digest:
        raise SafeheadError(f"{path} is damaged: its digest is not that of its contents")
    size = int.from_bytes(content[:8], "little")
    header: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][NAME])
    if header["format"] != FORMAT:
        raise SafeheadError(
            f"{path} is in format {header['format']}, and this version of safehead_tl reads "
            f"format {FORMAT}: use the version that wrote it"
        )
    if header["kind"] not in kinds:
        asked = " or ".join(kinds)
        raise SafeheadError(f"{path} does not hold a {asked}: it holds {header['kind']}")
    return safetensors.torch.load(content), header


class Saved(ABC):
    """A result that is saved whole in one file, and read again."""

    @abstractmethod
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What of it is a tensor, and what JSON can hold."""

    @classmethod
    @abstractmethod
    def _from_file(cls: type[Kept], tensors: dict[str, Tensor], header: dict[str, Any]) -> Kept:
        """Made of what `_to_file` gave."""

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Saves everything, prompts and responses too if it has any, to one safetensors file.

        Args:
            path: `*.safetensors`, in a folder that is there.
            overwrite: replace what is there even if this toolkit did not write it.

        Raises:
            SafeheadError: if it may not be written or cannot be, such as on a full disk.
        """
        save_result(path, type(self).__name__, *self._to_file(), overwrite=overwrite)

    @classmethod
    def load(cls: type[Kept], path: str | Path) -> Kept:
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            SafeheadError: if it holds something else, or is damaged.
        """
        kinds = {kind.__name__: kind for kind in cls.__subclasses__() or [cls]}
        tensors, header = load_result(path, *kinds)
        kind = kinds[header["kind"]]
        try:
            result = kind._from_file(tensors, header)
            for tell in (repr, getattr(kind, "to_dict", repr)):
                tell(result)  # shapes and names that do not go together would be met only then
            return result
        except (
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
            RuntimeError,
            StopIteration,
        ) as error:
            raise SafeheadError(
                f"{path} does not hold a whole {kind.__name__}: {error!r}"
            ) from error
