"""Embeddings by name, for files whose tensors do not tell them from linear layers."""

TABLES = ("embed_tokens", "tok_embeddings", "word_embeddings", "wte")


def is_table(path: str) -> bool:
    """Whether a module is an embedding, by the last part of its path."""
    return path.rpartition(".")[2] in TABLES
