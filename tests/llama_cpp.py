"""The outside judge: llama.cpp itself computes, in a process of its own, which it may abort."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

PAIRED = ("llama", "granite", "smollm3", "olmo")
"""The architectures whose queries and keys its converter permutes."""

WORDS = 64
"""The vocabulary of the models that it is asked about."""


def write_base(path: Path, arch: str, model) -> Path:
    """Write a model of transformers as llama.cpp's converter would, with a vocabulary of words."""
    import gguf

    config = model.config
    names = {name: kind for kind, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.TensorNameMap(names[arch], config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if (epsilon := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        stated = (getattr(config, each, None) for each in ("layer_norm_eps", "norm_epsilon"))
        writer.add_layer_norm_eps(next(filter(None, stated), 1e-5))
    if (scale := getattr(config, "logit_scale", None)) is not None:
        writer.add_logit_scale(scale)
    size = config.hidden_size // config.num_attention_heads
    writer.add_key_length(size)
    writer.add_value_length(size)
    part = config.rope_parameters.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(part * size))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("llama")
    words = [f"t{i}" for i in range(3, config.vocab_size)]
    writer.add_token_list(["<unk>", "<s>", "</s>", *words])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([2, 3, 3] + [1] * len(words))
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = tensor.detach().float().numpy()
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        count = heads.get(key.split(".")[-2]) if arch in PAIRED else None
        if count:
            halves = array.reshape(count, 2, len(array) // count // 2, *array.shape[1:])
            array = halves.swapaxes(1, 2).reshape(array.shape)
        if arch.startswith("gemma") and "norm" in key:
            array = array + 1
        name = table.get_name(key, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def log_probabilities(base: Path, ids: list[int], adapter: Path | None = None) -> np.ndarray:
    """Return what llama.cpp says of each word as the next one, with an adapter or without."""
    arguments = [str(base), json.dumps(ids), *([str(adapter)] if adapter else [])]
    done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    return np.array([value for _, value in sorted(found)])


def main(base: str, ids: str, adapter: str | None = None) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = base
    params.n_ctx = 128
    params.n_gpu_layers = 0
    params.n_parallel = 1
    params.warmup = params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)
    prompt = json.loads(ids)
    answer = server.handle_completions({"prompt": prompt, "n_predict": 1, "n_probs": WORDS})
    (choice,) = answer["choices"]
    (first,) = choice["logprobs"]["content"]
    print(json.dumps([(word["id"], word["logprob"]) for word in first["top_logprobs"]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
