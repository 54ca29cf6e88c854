"""What can happen to a file: flipped bits, a cut, strange bytes; and to a JSON document: edits.

Every choice comes from a `random.Random`: a seed tells a damage, and Hypothesis can steer it.
"""

import copy

STRANGE = (b"\x00", b"\r", b"\r\n", b"\n", b'"', b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80",
           b"{", b"[", b",", b"\t", b"9" * 40, b"\xf0\x9f\x99\x82")  # fmt: skip
VALUES = (
    None, True, False, 0, 1, -1, 2, 5, 10**9, 10**30, -(10**30), 0.5, 1e308, float("nan"),
    float("inf"), "", "no", "float16", "../..", "x" * 300, "\ud800", [], [0], [None], {}, {"a": 1},
    [[[[]]]], "🙂", "L99H99",
)  # fmt: skip


def flipped(content, draw):
    """One bit is another."""
    changed = bytearray(content)
    changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content, draw):
    return content[: draw.randrange(len(content))]


def spliced(content, draw):
    """Strange bytes, or some of its own, at some place, in addition or instead."""
    place, own = draw.randrange(len(content)), draw.randrange(len(content))
    new = draw.choice([*STRANGE, content[own : own + draw.randrange(1, 40)]])
    return content[:place] + new + content[place + draw.choice([0, len(new)]) :]


def emptied(content, draw):
    return b"" if draw.random() < 0.5 else bytes(len(content))


DAMAGES = (flipped, flipped, cut, spliced, spliced, emptied)


def damaged(content, draw):
    """One damage, seldom more, of any kind."""
    for _ in range(draw.choice([1, 1, 1, 3])):
        if content:
            content = draw.choice(DAMAGES)(content, draw)
    return content


def edited(document, draw):
    """A JSON document with a value changed, removed or added somewhere."""
    changed = copy.deepcopy(document)
    *parents, last = draw.choice([path for path in _paths(changed) if path])
    at = changed
    for key in parents:
        at = at[key]
    what = draw.randrange(6)
    if what == 0:
        del at[last]
    elif what == 1 and isinstance(at, dict):
        at["another"] = draw.choice(VALUES)
    elif what == 2 and isinstance(at, list):
        at.append(draw.choice([*VALUES, *at]))
    elif what == 3 and isinstance(at[last], int | float):
        at[last] += draw.choice([-1, 1, 1e-3])
    else:
        at[last] = draw.choice(VALUES)
    return changed


def _paths(document):
    """Where a document holds something."""
    yield ()
    items = ()
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = list(enumerate(document))
    for key, value in items:
        yield from ((key, *path) for path in _paths(value))
