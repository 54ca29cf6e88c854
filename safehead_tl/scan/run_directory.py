"""A directory that keeps the finished pieces of a long run, so that a killed one can go on.

A piece is an independent unit of work: a name, its inputs, its result. `run.json` says what the
run is; `pieces/` holds a file for each finished piece. All are written whole or not at all, with
digests. Several processes may share a directory, as shards of one run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from safehead_tl.ablations import Ablation
from safehead_tl.errors import SafeheadError
from safehead_tl.results import load_result, save_result, versions
from safehead_tl.scan.leases import Leases
from safehead_tl.scan.run import Run
from safehead_tl.writing import said_plainly, write_file

logger = logging.getLogger("safehead_tl")

FORMAT = 3


@dataclass(frozen=True)
class Piece:
    """A finished piece of work.

    Attributes:
        result: its scores, generated tokens, or anything else as bytes.
        token_layers: what it cost: tokens times layers.
        seconds: how long it took.
    """

    result: Tensor
    token_layers: int
    seconds: float


class RunDirectory:
    """Finished pieces of one run.

    Attributes:
        path: the directory.
        plan: how the run was cut up when it began.
        environment: what it ran on when it began.
        shared: other processes may be at its pieces, as shards of the same run.
    """

    def __init__(self, run: Run, path: Path, record: Mapping[str, Any]):
        self.path = path
        self.shared = run.on is not None
        self._shard = run.shard
        self._leases = Leases(path / "pieces", shard_name(run))
        self.plan: Mapping[str, Any] = record["plan"]
        self.environment: Mapping[str, Any] = record["environment"]
        self._digest = record["digest"]

    @classmethod
    def open(
        cls,
        run: Run,
        identity: Mapping[str, Any],
        environment: Mapping[str, Any],
        plan: Mapping[str, Any],
    ) -> RunDirectory:
        """Opens a directory for a run, to begin it or to go on with it.

        Args:
            run: which directory, made if it is not there; and which shard this is.
            identity: what the run is. It must be the same each time.
            environment: what it runs on. If it differs the last digits may, which is told.
            plan: how the run is cut up, if it begins now.

        Raises:
            SafeheadError: if the directory holds another run, something else, or cannot be
                written; or if the identity holds something that cannot be compared.
        """
        assert run.run_dir is not None
        path = Path(run.run_dir)
        manifest = path / "run.json"
        now = {"format": FORMAT, "identity": identity, "environment": environment, "plan": plan}
        record: dict[str, Any] = json.loads(json.dumps(now, default=_as_json))
        record["digest"] = _digest_of(record)
        if manifest.is_file():
            try:
                there = json.loads(manifest.read_text())
                format_there = there["format"]
                others = _differences(there["identity"], record["identity"])
                around = _differences(there["environment"], record["environment"])
                whole = there.get("digest") == _digest_of(there)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise SafeheadError(f"{manifest} is not the record of a run: {error!r}") from error
            if format_there != FORMAT:
                raise SafeheadError(
                    f"{path} holds a run in format {format_there}, and this version goes on with "
                    f"format {FORMAT}: give another run_dir, or the version that began it"
                )
            if not whole:
                raise SafeheadError(
                    f"{manifest} is damaged or was edited, its digest is not that of its contents: "
                    "give another run_dir"
                )
            if others:
                raise SafeheadError(
                    f"{path} holds another run: {'; '.join(others)}. Give the same settings "
                    "to go on with it, or another run_dir for a new run"
                )
            if around:
                logger.warning(
                    "%s began under other conditions (%s): the last digits of its scores may "
                    "differ from those of an undisturbed run",
                    path,
                    "; ".join(around),
                )
            return cls(run, path, there)
        beginning = () if run.on is None else ("pieces",)  # where another shard's lease is
        if path.is_dir() and any(
            not file.name.startswith(".") and file.name not in beginning for file in path.iterdir()
        ):
            raise SafeheadError(f"run_dir={path} holds other files: give an empty or new directory")
        with _kept_is_told(path):
            path.mkdir(parents=True, exist_ok=True)
            content = (json.dumps(record, indent=1) + "\n").encode()
            if run.on is None:
                write_file(manifest, content)
                return cls(run, path, record)
            # Of shards that begin at once, one says how the run is cut up.
            leases = Leases(path / "pieces", shard_name(run))
            while not manifest.is_file():
                with leases.held("run") as ours:
                    if not ours:
                        time.sleep(0.05)
                    elif not manifest.is_file():
                        write_file(manifest, content)
        return cls.open(run, identity, environment, plan)

    def get(self, name: str, inputs: Mapping[str, Any]) -> Piece | None:
        """A finished piece; `None` if there is none, or (told) if it is damaged."""
        path = self._file(name)
        try:
            tensors, header = load_result(path, "piece")
            if header["of"] != self._belonging(name, inputs):
                raise SafeheadError("it is of another run, or of other inputs")
            return Piece(tensors["result"], **header["cost"])
        except FileNotFoundError:
            return None
        except (SafeheadError, OSError) as error:
            logger.warning("%s is damaged (%s): computing it again", path, error)
            return None

    def put(self, name: str, inputs: Mapping[str, Any], piece: Piece) -> None:
        """Keeps a finished piece.

        Raises:
            SafeheadError: if it cannot be written, such as on a full disk. What was kept stays.
        """
        cost = {"token_layers": piece.token_layers, "seconds": piece.seconds}
        header = {"of": self._belonging(name, inputs), "cost": cost}
        with _kept_is_told(self.path):
            file = self._file(name)
            file.parent.mkdir(exist_ok=True)
            save_result(file, "piece", {"result": piece.result}, header, overwrite=True)

    def held(self, name: str) -> AbstractContextManager[bool]:
        """Whether this process, and no other shard, is at a piece; until the end, if it is."""
        return self._leases.held(name) if self.shared else nullcontext(True)

    def first_of(self, count: int) -> int:
        """At which of so many pieces this shard begins."""
        number, of = self._shard
        return number * count // of

    def _belonging(self, name: str, inputs: Mapping[str, Any]) -> str:
        """What a piece is a piece of."""
        return json.dumps([self._digest, name, inputs], sort_keys=True)

    def _file(self, name: str) -> Path:
        return self.path / "pieces" / f"{name}.safetensors"


def shard_name(run: Run) -> str:
    """This process, among those that share a run."""
    return f"shard {run.on}, process {os.getpid()} on {platform.node()}"


def identity_of(description: Mapping[str, Any], ablation: Ablation) -> dict[str, Any]:
    """The parts of a run's identity that all runs have: the model, and what is done to it.

    Args:
        description: of the model. Where it was loaded from and where it runs may change.
        ablation: the ablation.
    """
    if description["hooks"]:
        logger.warning(
            "the model has hooks of your own, at %s: run_dir cannot tell whether they are the "
            "same when the run goes on",
            ", ".join(description["hooks"]),
        )
    elsewhere = ("name", "revision", "weights", "device")
    return {
        "model": {key: value for key, value in description.items() if key not in elsewhere},
        "ablation": {
            "class": f"{type(ablation).__module__}.{type(ablation).__qualname__}",
            **ablation.describe(),
        },
    }


def environment_of(device: torch.device, memory: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's last digits depend on: versions, device, threads, how it was cut up."""
    return {
        "versions": dict(versions()),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "memory": dict(memory),
    }


@contextmanager
def _kept_is_told(path: Path) -> Iterator[None]:
    """Says besides what could not be written that all finished pieces stay."""
    try:
        with said_plainly(f"run_dir={path}"):
            yield
    except SafeheadError as error:
        raise SafeheadError(
            f"{error}. What was finished before is kept: make room, or let it be written, and "
            "start again with the same run_dir"
        ) from error


def _digest_of(record: Mapping[str, Any]) -> str:
    """Of all that the record of a run says, but for the digest itself."""
    told = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _as_json(value: Any) -> Any:
    """What JSON has no word for: a tensor as its digest; anything else is refused."""
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
        return {"shape": list(value.shape), "sha256": hashlib.sha256(content).hexdigest()}
    raise SafeheadError(
        f"run_dir cannot compare a {type(value).__name__} ({value!r}), which is among the "
        "settings: leave run_dir out, or use numbers, texts and tensors"
    )


def _differences(there: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two JSON values, as sentences."""
    if isinstance(there, dict) and isinstance(now, dict):
        return [
            found
            for key in sorted(there.keys() | now.keys())
            for found in _differences(there.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if there == now else [f"{name} was {_short(there)} and is now {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
