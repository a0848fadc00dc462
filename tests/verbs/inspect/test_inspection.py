import json
import subprocess
import sys

import reference

from lora_tools import inspect, read


def test_every_module_is_described_from_headers_alone(adapter_path):
    data = json.loads(json.dumps(inspect(read(adapter_path)).to_dict()))
    assert data["schema"] == "lora-tools/inspect/2"
    assert data["format"] == "peft"
    dense = reference.deltas(adapter_path)
    tensors = reference.load(adapter_path)[0]
    assert len(data["modules"]) == len(dense) == data["totals"]["modules"]
    assert data["totals"]["params"] == sum(tensor.numel() for tensor in tensors.values())
    adapter = read(adapter_path)
    for described, module in zip(data["modules"], adapter.manifest.modules, strict=True):
        assert described["module"] == module.name
        update = adapter[module.name]
        low = getattr(update, "direction", getattr(update, "weight", update))
        assert described["scale"] == low.scale
        assert (low.dense().double() - dense[module.key_prefix]).norm() <= 1e-5 * dense[
            module.key_prefix
        ].norm()


def test_inspect_imports_no_torch(made):
    if made.name == "minilm-bin":
        return  # a pickle has no header: torch has to read it
    code = (
        "import sys, lora_tools; lora_tools.inspect(lora_tools.read(sys.argv[1])).to_dict();"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(made)], check=True)
