"""Results on disk: tensors with a JSON header in one safetensors file, never pickle."""

from __future__ import annotations

import json
import os
import tempfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from safehead_tl.errors import SafeheadError

HEADER = "safehead_tl"
FORMAT = 2

Kept = TypeVar("Kept", bound="Saved")


def write_atomically(path: str | Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def save_result(
    path: str | Path, kind: str, tensors: dict[str, Tensor], header: dict[str, Any]
) -> None:
    """Saves tensors and a JSON header.

    Args:
        path: the file, usually `*.safetensors`; missing folders are made.
        kind: what the file holds; `load_result` asks for it.
        tensors: the tensors.
        header: anything that JSON can hold.
    """
    text = json.dumps({"format": FORMAT, "kind": kind, **header})
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata={HEADER: text}))


def load_result(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads what `save_result` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        SafeheadError: if it is no result of this kind.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise SafeheadError(f"{path} is not a safetensors file, or is damaged: {error}") from error
    header: dict[str, Any] = json.loads(metadata.get(HEADER, "{}"))
    if header.get("kind") != kind:
        found = header.get("kind", "something else")
        raise SafeheadError(f"{path} does not hold a {kind}: it holds {found}")
    if header["format"] != FORMAT:
        raise SafeheadError(
            f"{path} is in format {header['format']}, and this version of safehead_tl reads "
            f"format {FORMAT}: use the version that wrote it"
        )
    return tensors, header


class Saved(ABC):
    """A result that is saved whole in one file, and read again."""

    @abstractmethod
    def _to_file(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What of it is a tensor, and what JSON can hold."""

    @classmethod
    @abstractmethod
    def _from_file(cls: type[Kept], tensors: dict[str, Tensor], header: dict[str, Any]) -> Kept:
        """Made of what `_to_file` gave."""

    def save(self, path: str | Path) -> None:
        """Saves everything, prompts and responses too if it has any, to one safetensors file."""
        save_result(path, type(self).__name__, *self._to_file())

    @classmethod
    def load(cls: type[Kept], path: str | Path) -> Kept:
        """Loads what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            SafeheadError: if it holds something else.
        """
        return cls._from_file(*load_result(path, cls.__name__))
