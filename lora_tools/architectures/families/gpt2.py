"""GPT-2, whose layers are stored as (in, out)."""

from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.tables import Table, being, one, rows

LAYER: Table = {
    **being("norm", "ln_{1,2}"),
    "attn.c_attn": rows("attn.{q,k,v}_proj", transposed=True),
    "attn.c_proj": one("attn.c_proj", transposed=True),
    "mlp.c_{fc,proj}": one("mlp.c_{fc,proj}", transposed=True),
}

GPT2 = Family(
    "GPT-2",
    hub="split",
    containers=MODEL,
    dialects={
        "transformers": {
            **being("embedding", "transformer.{wte,wpe}"),
            **being("norm", "transformer.ln_f"),
            **being("head", "lm_head"),
            "transformer.h.#.": ("transformer.h.#.", LAYER),
        },
        "bare": {
            "{wte,wpe}": one("transformer.{wte,wpe}", role="embedding"),
            "ln_f": one("transformer.ln_f", role="norm"),
            "h.#.": ("transformer.h.#.", LAYER),
        },
    },
    named="gpt-?2",
    types=("gpt2",),
    tie=Tie("transformer.wte", "lm_head", always=True),
)
