"""BERT, and RoBERTa, whose head has other names."""

from lora_tools.architectures.family import MODEL, Family, Tie
from lora_tools.architectures.tables import Table, being, norm, one, same

EMBEDDINGS = "embeddings.{word_embeddings,position_embeddings,token_type_embeddings}"
NORMS = "embeddings.LayerNorm", "encoder.layer.#.{attention.output,output}.LayerNorm"
LAYERS = (
    "encoder.layer.#.attention.self.{query,key,value}",
    "encoder.layer.#.{attention.output,intermediate,output}.dense",
    "pooler.dense",
)
BODY: Table = {
    **being("embedding", EMBEDDINGS),
    **being("norm", *NORMS),
    **same(*LAYERS),
}
HEADS: Table = {
    "cls.predictions.decoder": one("cls.predictions.decoder", role="head"),
    "cls.predictions.transform.dense": "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm": norm("cls.predictions.transform.LayerNorm"),
    "classifier": "classifier",
}

BERT = Family(
    "BERT",
    hub="transformers",
    containers=MODEL,
    dialects={"bare": {"": ("bert.", BODY)}},
    modules={"bert.": ("bert.", BODY), **HEADS},
    named="bert",
    types=("bert",),
    tie=Tie("bert.embeddings.word_embeddings", "cls.predictions.decoder", always=True),
)

ROBERTA = Family(
    "RoBERTa",
    hub="transformers",
    containers=MODEL,
    dialects={"bare": {"": ("roberta.", BODY)}},
    modules={
        "roberta.": ("roberta.", BODY),
        **being("head", "lm_head.decoder"),
        **being("norm", "lm_head.layer_norm"),
        **same("lm_head.dense", "classifier.{dense,out_proj}"),
    },
    named="roberta",
    types=("roberta", "xlm-roberta", "camembert"),
    tie=Tie("roberta.embeddings.word_embeddings", "lm_head.decoder", always=True),
)
