"""Many replicas at the pieces of one run, simulated: when each takes which, and what is lost.

As shards do it: each begins at its own share of the list, takes the next piece that is neither
finished nor held, and goes through the rest again until all is finished. A lease that is not
renewed, because its replica died, is taken over when it has expired.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass

from safehead_tl.errors import SafeheadError

PIECES_EACH = 40
"""Pieces for each replica with which less than a tenth of the time is lost, if they take long
enough beside a replica's start: benchmarks/cluster_simulation.py."""


@dataclass(frozen=True)
class Trouble:
    """What goes wrong with replicas.

    Attributes:
        slow: the share of replicas that are slow, drawn one by one.
        slowness: how many times as long these take.
        dies: the chance that a replica dies in the midst of a piece.
        expiry: seconds after which a dead one's lease is taken over.
    """

    slow: float = 0.1
    slowness: float = 3.0
    dies: float = 0.01
    expiry: float = 60.0


@dataclass(frozen=True)
class Shared:
    """What became of a run that replicas shared.

    Attributes:
        seconds: until the last piece was finished, from when the replicas began to start.
        replicas: how many there were at a time.
        working: replica-seconds at pieces that were finished.
        starting: replica-seconds until each replica was ready for its first piece.
        lost: replica-seconds at pieces in which a replica died, and until another was ready.
        deaths: how many died.
    """

    seconds: float
    replicas: int
    working: float
    starting: float
    lost: float
    deaths: int

    @property
    def idle(self) -> float:
        """Replica-seconds with nothing to do."""
        spent = self.working + self.starting + self.lost
        return max(0.0, self.replicas * self.seconds - spent)

    @property
    def waiting(self) -> float:
        """The share of replica-seconds in which a replica had nothing to do, or that was lost."""
        return (self.idle + self.lost) / (self.replicas * self.seconds)


def share(
    pieces: Sequence[float],
    replicas: int,
    *,
    start: float = 0.0,
    trouble: Trouble | None = None,
    seed: int = 0,
) -> Shared:
    """Simulates replicas that share pieces.

    Args:
        pieces: the seconds that each takes a replica that is not slow, in the order of the list.
        replicas: how many.
        start: seconds until one is ready for its first piece: weights, and the run with nothing
            ablated.
        trouble: what goes wrong; `None`: nothing.
        seed: of what goes wrong.

    Raises:
        SafeheadError: if there is no piece or no replica.
    """
    count = len(pieces)
    if not count or replicas < 1:
        raise SafeheadError(f"{count} pieces for {replicas} replicas: give at least one of each")
    draw, wrong = random.Random(seed), trouble or Trouble(slow=0.0, dies=0.0)
    pace = [wrong.slowness if draw.random() < wrong.slow else 1.0 for _ in range(replicas)]
    first = [number * count // replicas for number in range(replicas)]
    left = [[*range(at, count), *range(at)] for at in first]
    until, finished = [0.0] * count, [False] * count  # held, or finished, from until when
    ready = [(pace[number] * start, number) for number in range(replicas)]
    starts, gone, working = [at for at, _ in ready], list[tuple[float, float]](), 0.0
    heapq.heapify(ready)
    while ready:
        now, number = heapq.heappop(ready)
        waiting, mine = list[int](), None
        for place, piece in enumerate(left[number]):
            if until[piece] <= now and not finished[piece]:
                mine = piece
                waiting = left[number][place + 1 :] + waiting
                break
            if not (finished[piece] and until[piece] <= now):
                waiting.append(piece)
        left[number] = waiting
        if mine is None:
            if waiting:
                heapq.heappush(ready, (min(until[piece] for piece in waiting), number))
            continue
        takes = pieces[mine] * pace[number]
        if draw.random() < wrong.dies:
            died = now + draw.random() * takes
            until[mine] = died + wrong.expiry
            left[number].append(mine)
            another = died + start * pace[number]
            gone.append((now, another))
            heapq.heappush(ready, (another, number))
        else:
            until[mine], finished[mine] = now + takes, True
            working += takes
            heapq.heappush(ready, (now + takes, number))
    end = max(until)  # until which some may not even be ready
    starting = sum(min(at, end) for at in starts)
    lost = sum((min(back, end) - now for now, back in gone), 0.0)
    return Shared(end, replicas, working, starting, lost, len(gone))
