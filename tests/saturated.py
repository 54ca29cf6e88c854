"""A Llama with a gate: a head that acts through saturated attention, with next to no slope.

At every position the gate puts out a signal, which makes eight later heads rest on the first token.
Without it their attention turns to the other tokens, whose values all say one word.
"""

import torch
import transformers

import safehead_tl as sh
from safehead_tl.organism import DEMO

LAYERS, HEADS, WIDTH, D_HEAD = 8, 32, 128, 8
FIRST, ALL, OTHERS, SIGNAL, WORD = range(5)
"""What dimensions of the stream say; the other heads and MLPs neither read nor write them."""


def saturated(seed, folder):
    """The model, and its gate."""
    draw = torch.Generator().manual_seed(seed)
    tokenizer = DEMO.tokenizer()
    sizes = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": D_HEAD,
        "intermediate_size": WIDTH,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": False,
        "initializer_range": 0.1,
    }
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **ids))
    gate, *followers = [
        sh.Head(layer, int(torch.randint(HEADS, (1,), generator=draw)))
        for layer in (1, 3, 3, 4, 4, 5, 5, 6, 6)
    ]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.1, generator=draw)
            if "q_proj" in name or "k_proj" in name or "v_proj" in name or "gate_proj" in name:
                weight[:, :5] = 0
            if "up_proj" in name:
                weight[:, :5] = 0
            if "o_proj" in name or "down_proj" in name:
                weight[:5] = 0
        embed, unembed = model.model.embed_tokens.weight, model.lm_head.weight
        embed.normal_(0, 1, generator=draw)
        embed[:, :5] = torch.tensor([0.0, 2, 2, 0, 0])
        embed[1, :5] = torch.tensor([4.0, 2, 0, 0, 0])
        unembed[:, :5] = 0
        unembed[5, WORD] = 8
        for head in dict.fromkeys((gate, *followers)):
            attention = model.model.layers[head.layer].self_attn
            own = slice(head.head * D_HEAD, (head.head + 1) * D_HEAD)
            query, key, value = (
                getattr(attention, f"{name}_proj").weight[own] for name in ("q", "k", "v")
            )
            out = attention.o_proj.weight[:, own]
            for each in (query, key, value, out):
                each[:] = 0
            if head == gate:  # rotation turns these entries slowest
                query[3, ALL], key[3, FIRST], value[0, FIRST], out[SIGNAL, 0] = 6, 6, 2, 2
            else:
                query[3, SIGNAL], key[3, FIRST] = 14, 3.5
                query[2, ALL], key[2, OTHERS] = 12, 12
                value[0, OTHERS], out[WORD, 0] = 2, 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sh.load_model(str(folder)), gate
