"""The patch embedding before training: the principal components of patches, each of one size.

The pixels of a patch are alike, so that nearly all of its variance is brightness; strokes are in the small components.
Whitened, all of them reach the tower from the first step on.
"""

import random

import torch

from .crops import cut_crops
from .network import Network
from .samples import draw_document
from .setting import Phase

PAGES = 24
# Added to the variances, as a part of their mean, so that noise is not made as large as strokes.
LEAST_VARIANCE = 0.01
SIZE = 0.5


def sample_patches(network: Network, phase: Phase, seed: int) -> torch.Tensor:
    """Patches of the first pages of a phase, those of one color left out: (N, 3·p·p)."""
    setting = network.setting
    crops = []
    for index in range(PAGES):
        document = draw_document(setting, phase, seed, index)
        crops += cut_crops(document, setting, phase.views, 4, random.Random(index))
    patches = torch.cat([patches.float() for patches, _ in crops])
    return patches[patches.std(dim=1) > 0.1]


@torch.no_grad()
def whiten(network: Network, patches: torch.Tensor) -> None:
    """Set the patch embedding to whiten these patches, and take the mean away by the positions: it has no bias.

    Args:
        network: network before its first step.
        patches: (N, 3·p·p).
    """
    embeddings = network.tower.embeddings
    weight = embeddings.patch_embedding.weight
    free = weight.flatten(1).abs().sum(dim=1) > 0  # channels that are not left to the positions
    mean = patches.mean(dim=0)
    variances, components = torch.linalg.eigh((patches - mean).T.cov())
    variances, components = variances.flip(0)[: free.sum()], components.flip(1)[:, : free.sum()]
    rows = SIZE * components.T / (variances + LEAST_VARIANCE * variances.mean()).sqrt()[:, None]
    weight.flatten(1)[free] = rows
    embeddings.position_embedding.weight[1:, free] -= rows @ mean
