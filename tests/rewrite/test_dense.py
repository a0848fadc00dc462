"""What is kept of a sum of full rank between its two passes is what would be found again."""

import numpy as np
import pytest
import torch
from conftest import FIXTURES

from lora_tools import MaxError, read
from lora_tools.linalg.rank import Fixed
from lora_tools.rewrite import RewriteOptions
from lora_tools.rewrite.dense import rewrite
from lora_tools.rules import parametrised, rule_named
from lora_tools.verbs.combine import combine


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("policy", [Fixed(3), MaxError(0.8)])
def test_kept_vectors_change_no_bit(policy, dtype):
    adapters = [read(FIXTURES / f"minilm-{name}") for name in ("plain", "rslora")]
    options = RewriteOptions(scale="keep", dtype=dtype)
    rule = parametrised(rule_named("ties"), {})
    plan = combine(adapters, None, policy, options, rule=rule)
    for job in plan.rewrite.jobs:
        assert job.known is not None
        assert bool(job.known.leaders) == isinstance(policy, Fixed)
        first = rewrite(job)
        again = rewrite(type(job)(job.source, job.module, job.device, job.target))
        for x, y in ((first.update.a, again.update.a), (first.update.b, again.update.b)):
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))
        assert first.row == again.row
        assert first.row.sigma_discarded > 0
        assert np.isfinite(first.row.error)
