"""Attention of one checkpoint in another, from state dicts and names of weights alone."""

import torch

INSIDE = (".self_attn.", ".attn.", ".attention.", ".self_attention.")
JOINT = ("c_attn", "query_key_value", "qkv_proj")
N_HEADS, D_HEAD = 4, 8


def own_rows(name, n_kv):
    """Which part and which of its heads each row of a joint projection belongs to."""
    whose = {"q": N_HEADS, "k": n_kv, "v": n_kv}
    if "query_key_value" in name:  # for each head its q, its k, its v
        return [(part, head) for head in range(N_HEADS) for part in whose for _ in range(D_HEAD)]
    return [(part, head) for part, n in whose.items() for head in range(n) for _ in range(D_HEAD)]


def second_splice(target, donor, parts, layers, n_kv, heads=None):
    """The target's weights with the donor's in some parts, layers, and heads (all, if `None`)."""
    size = N_HEADS // n_kv

    def taken(part, layer, head):
        if heads is None:
            return part in parts
        group = range(head * size, (head + 1) * size) if part in "kv" else [head]
        return part in parts and all((layer, each) in heads for each in group)

    new = {name: tensor.clone() for name, tensor in target.items()}
    for name, tensor in donor.items():
        numbers = [int(piece) for piece in name.split(".") if piece.isdigit()]
        if not any(place in name for place in INSIDE) or numbers[0] not in layers:
            continue
        if "rotary" in name or "layernorm" in name.split(".")[-2]:
            continue
        layer, leaf = numbers[0], name.split(".")[-2]
        if leaf in JOINT:
            rows = torch.tensor([taken(part, layer, head) for part, head in own_rows(name, n_kv)])
            if leaf == "c_attn":
                new[name][..., rows] = tensor[..., rows]
            else:
                new[name][rows] = tensor[rows]
            continue
        part = ("norm" if "norm" in leaf else "sinks" if name.endswith("sinks") else
                leaf[0] if leaf in ("q_proj", "k_proj", "v_proj") else "o")  # fmt: skip
        if heads is None:
            if part in parts:
                new[name] = tensor
        elif part != "norm" and not (part == "o" and name.endswith("bias")):
            size_of_one = 1 if part == "sinks" else D_HEAD
            dim = 1 if part == "o" and leaf != "c_proj" else 0
            mine, theirs = (each.movedim(dim, 0) for each in (new[name], tensor))
            for head in range(len(mine) // size_of_one):
                if taken(part, layer, head):
                    own = slice(head * size_of_one, (head + 1) * size_of_one)
                    mine[own] = theirs[own]
    return new
