"""`llava_uhd.flops` for the sizes of a measurement."""

from .. import flops
from ..flops import ProjectorFlops
from .sizes import Sizes


def plain_projector(sizes: Sizes, shape: tuple[int, int]) -> ProjectorFlops:
    """Count the published formulation on one view of (rows, columns) patches."""
    return flops.reference_projector(sizes.config(with_text=True), shape)


def folded_projector(sizes: Sizes, shape: tuple[int, int]) -> ProjectorFlops:
    """Count this package's projector on one view of (rows, columns) patches, the weights folded."""
    return flops.fused_projector(sizes.config(with_text=True), shape)


def training_step(sizes: Sizes, shape: tuple[int, int], views: int, plain: bool) -> float:
    """Count forward and backward pass of the projector, recomputation included."""
    return flops.projector_training_step(sizes.config(with_text=True), shape, views, plain)


def encoder(sizes: Sizes, shape: tuple[int, int], layers: int) -> float:
    """Count the tower's layers on one view of (rows, columns) patches."""
    return flops.tower_flops(sizes.config(with_text=True), shape, layers)


def language_model(sizes: Sizes, tokens: int, past: int = 0) -> float:
    """Count the language model on `tokens` tokens after `past` others, the head on the last alone."""
    return flops.language_flops(sizes.config(with_text=True), tokens, 1, past)
