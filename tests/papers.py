"""Rules of merging, written from their papers, for dense updates in float64."""

import numpy as np


def ties(taus, k):
    """Yadav et al. 2023, algorithm 1."""
    trimmed = []
    for tau in taus:
        order = np.argsort(-np.abs(tau), axis=None)[: int(k * tau.size)]
        kept = np.zeros(tau.size)
        kept[order] = tau.reshape(-1)[order]
        trimmed.append(kept.reshape(tau.shape))
    gamma = np.sign(sum(trimmed))
    merged = np.zeros_like(taus[0])
    for at in np.ndindex(merged.shape):
        agree = [t[at] for t in trimmed if t[at] and np.sign(t[at]) == gamma[at]]
        merged[at] = np.mean(agree) if agree else 0
    return merged


def magnitude(taus, k):
    cut = [np.sort(np.abs(tau), axis=None)[-int(k * tau.size)] for tau in taus]
    return sum(np.where(np.abs(tau) >= least, tau, 0) for tau, least in zip(taus, cut, strict=True))
