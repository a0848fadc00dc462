"""What a person sees of verdicts."""

from conftest import FIXTURES

from lora_tools import runtimes

PATTERNS = FIXTURES / "minilm-patterns"


def test_the_whole_screen():
    subject = runtimes.subject(PATTERNS)
    judgements = [runtimes.judge(subject, c) for c in runtimes.named(["peft", "vllm", "sglang"])]
    text = runtimes.to_text(judgements).replace(str(PATTERNS), "SRC")
    assert text == SCREEN


SCREEN = """\
peft 0.21.2    loads
               hot-swap: ranks from 2 to 16: swapping it into a compiled model needs
                 prepare_model_for_compiled_hotswap(target_rank=16) first
vllm 0.33.0    loads
               one-scale: before vllm 0.32.0: loads at the wrong strength. vllm reads one scale for
                 all modules: 14 of 24 modules get 0.75 to 1.3333 times their strength
                 (encoder.layer.0.attention.self.query: 1.5 in place of 1.25)
                 encoder.layer.[0..5].attention.self.query,
                   encoder.layer.[0..5].attention.self.value,
                   encoder.layer.[4..5].attention.self.key
                 to be safe: lora-tools shrink SRC OUT --rank 16 --for vllm
sglang 0.5.23  refused
               mixed-ranks: r is 8, but 15 of 24 modules have another rank
                 (encoder.layer.0.attention.output.dense: 2), which does not fit the buffers
                 encoder.layer.[0..5].attention.output.dense, encoder.layer.0.attention.self.query,
                   encoder.layer.[0..5].attention.self.value,
                   encoder.layer.[4..5].attention.self.key
                 fix it: lora-tools shrink SRC OUT --rank 16 --for vllm
               ignored: no tensor belongs to `layers.N`
                 base_model.model.encoder.layer.[0..5].attention.output.dense,
                   base_model.model.encoder.layer.[0..5].attention.self.key,
                   base_model.model.encoder.layer.[0..5].attention.self.query,
                   base_model.model.encoder.layer.[0..5].attention.self.value"""


def test_lines_are_wrapped_and_commands_are_not():
    subject = runtimes.subject(PATTERNS)
    judgements = [runtimes.judge(subject, runtime) for runtime in runtimes.RUNTIMES]
    for width in (60, 100):
        lines = runtimes.to_text(judgements, width).splitlines()
        long = [line for line in lines if len(line) > width]
        assert all("lora-tools shrink" in line or " " not in line.strip() for line in long)


def test_no_engine_no_text():
    assert runtimes.to_text([]) == ""
