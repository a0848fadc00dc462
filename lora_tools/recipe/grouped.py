"""Grouped convolutions: what of their updates a base weight can hold."""

import numpy as np

from lora_tools.adapter import Adapter
from lora_tools.errors import UnsupportedError
from lora_tools.formats.base import Convolution, Module
from lora_tools.recipe.factors import dense_factors


def check_groups(adapter: Adapter, module: Module) -> None:
    """Raise `UnsupportedError` if a group's update reads the channels of other groups.

    PEFT computes B(A(x)) with a full convolution A and a grouped B (`_ConvNd` in
    tuners/lora/layer.py), so every group sees all channels. The weight of a grouped convolution
    has no numbers for the others'; only an update that is zero there can be merged, and that is
    told from the product itself, in float64.
    """
    site = module.site
    if not isinstance(site, Convolution) or site.groups == 1:
        return
    own = site.channels // site.groups
    for group in range(site.groups):
        b, a = dense_factors(adapter, module, group)
        mask = np.ones(site.channels, bool)
        mask[group * own : (group + 1) * own] = False
        product = b @ a.reshape(len(a), site.channels, -1)[:, mask].reshape(len(a), -1)
        if product.any():
            raise UnsupportedError(
                f"{adapter.path}: {module.name}: the update of a convolution with {site.groups}"
                " groups, in which each group reads all channels: its weight only has those of its"
                " own group"
            ).hint("Serve the adapter unmerged, or leave it out with --allow-missing.")
