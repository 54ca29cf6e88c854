"""The two kinds of model, loaded and run in parts.

In goes what names a model: `demo`, a directory, a name on the hub, a model at hand. Out comes a
`HookedTransformer` or `TransformerBridge` that is checked and knows where it came from; and
functions that run some of its layers, the last query alone, or the unembedding, the same for both
kinds. Nothing here knows of prompts, heads to ablate or scores.
"""

from safehead_tl.models.anatomy import Anatomy, Attention, Channel, dissect
from safehead_tl.models.bridge import transformers_forward
from safehead_tl.models.conversion import (
    NotConvertibleError,
    hooked_config,
    load_config,
    load_original,
)
from safehead_tl.models.foreign import foreign, words
from safehead_tl.models.forward import (
    all_logits,
    attention_given,
    embed,
    next_logits,
    run_attention,
    run_layers,
    run_prefix,
    run_to_last_state,
    runs_in_parts,
)
from safehead_tl.models.identity import (
    SITES,
    Hook,
    Model,
    Site,
    SpecialTokens,
    describe,
    end_tokens,
    hook_point,
    is_processed,
    reading,
    require_finite,
    require_site,
    why_not_finite,
)
from safehead_tl.models.keys import Past, Recorded
from safehead_tl.models.loading import (
    EMBEDDED,
    Backend,
    Loading,
    checkpoint_directory,
    has_hooked_transformer,
    hub_name,
    hub_revision,
    known_names,
    load_model,
    parse_dtype,
    read_config,
)
from safehead_tl.models.readout import (
    behind_final_norm,
    final_state,
    gradient_with_norm_held,
    next_token_log_probs,
    next_token_logits,
    unembedded,
)
from safehead_tl.models.silence import no_bars, quiet, said_once, without_bars
from safehead_tl.models.sketching import shortened, sketch
from safehead_tl.models.slices import head_slices
from safehead_tl.models.threads import single_thread, single_thread_if_tiny
from safehead_tl.models.tokenizers import adds_bos, attach_tokenizer, load_tokenizer, write_chat
from safehead_tl.models.undoing import check_model, hooked
from safehead_tl.models.writes import record_writes
