"""Grouped convolutions: what of their updates a base weight can hold."""

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.formats.manifest import Module
from lora_tools.formats.sites import Convolution
from lora_tools.merging.factors import dense_factors


def reads_others(adapter: Adapter, module: Module) -> bool:
    """Whether a group's update reads the channels of other groups; reads the factors.

    PEFT computes B(A(x)) with a full convolution A and a grouped B (`_ConvNd` in
    tuners/lora/layer.py), so every group sees all channels. The weight of a grouped convolution
    has no numbers for the others'; only an update that is zero there can be merged, and that is
    told from the product itself, in float64.
    """
    site = module.site
    if not isinstance(site, Convolution) or site.groups == 1:
        return False
    own = site.channels // site.groups
    for group in range(site.groups):
        b, a = dense_factors(adapter, module, group)
        others = np.ones(site.channels, bool)
        others[group * own : (group + 1) * own] = False
        product = b @ a.reshape(len(a), site.channels, -1)[:, others].reshape(len(a), -1)
        if product.any():
            return True
    return False
