"""Marks of tests that not every machine can run, each loud about what goes untested."""

import pytest
import torch


def needs_gpu(what: str) -> pytest.MarkDecorator:
    """Return the mark of a test that computes on a GPU: what is skipped where there is none."""
    return pytest.mark.skipif(
        not torch.cuda.is_available(), reason=f"SKIPPED FOR WANT OF A GPU: {what} --device cuda"
    )
