"""Keys and values of earlier positions, as TransformerLens's attention asks for them.

These stand in for the entries of its KV cache: they share a prefix among rows, record one, or bring
all keys to a single query.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class KeysAndValues(Protocol):
    """What TransformerLens's attention asks of a layer's entry in a KV cache."""

    @property
    def past_keys(self) -> Float[Tensor, "row past kv_head d_head"]:
        """Of earlier positions; attention asks how many there are."""
        ...

    def append(
        self,
        keys: Float[Tensor, "row pos kv_head d_head"],
        values: Float[Tensor, "row pos kv_head d_head"],
    ) -> tuple[Float[Tensor, "row key kv_head d_head"], Float[Tensor, "row key kv_head d_head"]]:
        """The keys and values of all positions, from those of the new ones."""
        ...


Past: TypeAlias = Mapping[int, KeysAndValues]
"""Keys and values of earlier positions, by layer."""


@dataclass(frozen=True)
class SharedPrefix:
    """Keys and values of prefixes in one layer, each put before an equal share of the rows."""

    past_keys: Float[Tensor, "prefix past kv_head d_head"]
    past_values: Float[Tensor, "prefix past kv_head d_head"]

    def append(
        self,
        keys: Float[Tensor, "row pos kv_head d_head"],
        values: Float[Tensor, "row pos kv_head d_head"],
    ) -> tuple[Float[Tensor, "row key kv_head d_head"], Float[Tensor, "row key kv_head d_head"]]:
        """Copies a prefix once for each of its rows, and only in the layer that is running."""
        return self._before(self.past_keys, keys), self._before(self.past_values, values)

    def _before(self, past: Tensor, new: Tensor) -> Tensor:
        new = new.unflatten(0, (len(past), -1))
        past = past[:, None].expand(-1, new.shape[1], -1, -1, -1)
        return torch.cat([past, new], 2).flatten(0, 1)


class Recorded:
    """Keeps the keys and values of prefixes as they are computed."""

    def __init__(self) -> None:
        self.past_keys = torch.empty(0, 0, 0, 0)
        self.shared: SharedPrefix | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Notes a prefix's keys and values, and leaves them as they are."""
        self.shared = SharedPrefix(keys, values)
        return keys, values


class LastQuery:
    """Tells attention that the query is the last position, and that keys come for all of them."""

    def __init__(self, past: KeysAndValues | None, n_keys: int):
        before = 0 if past is None else past.past_keys.shape[1]
        self.past_keys = torch.empty(0, before + n_keys - 1, 0, 0)
        self._past = past

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts what came before, if anything, in front."""
        return (keys, values) if self._past is None else self._past.append(keys, values)
