"""Exact chunked next-token loss without materialized logits.

Logits of 4096 positions and 32,000 tokens take half a gigabyte in float32, and their gradient the same again. Here
only a chunk of logits exists at a time: its loss and gradient are computed together in the forward pass, and positions
with label -100 are skipped.

Shapes: T positions, E hidden size, V vocabulary size.
"""

from types import MethodType
from typing import Any

import torch

from ..model.autocast import without_autocast
from ..model.modeling_llava_uhd import LlavaUhdCausalLMOutputWithPast, LlavaUhdForConditionalGeneration
from .labels import IGNORE, find_targets


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum over positions of -log softmax(hidden @ weightᵀ)[label]; logits in float32, `chunk` positions at a time."""

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, chunk: int):
        precision = torch.promote_types(hidden.dtype, torch.float32)
        total = torch.zeros((), dtype=precision, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=precision) if ctx.needs_input_grad[1] else None
        for start in range(0, len(hidden), chunk):
            piece, targets = hidden[start : start + chunk], labels[start : start + chunk, None]
            logits = (piece @ weight.T).to(precision)  # chunk, V
            normalizer = logits.logsumexp(dim=1, keepdim=True)
            total += (normalizer - logits.gather(1, targets)).sum()
            if grad_hidden is None and grad_weight is None:
                continue
            error = logits.sub_(normalizer).exp_()  # softmax, then minus one at the label
            error.scatter_add_(1, targets, torch.full_like(targets, -1, dtype=precision))
            error = error.to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[start : start + chunk] = error @ weight
            if grad_weight is not None:
                grad_weight += error.T @ piece
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor):
        (scale,) = grad_outputs
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = (grad_hidden * scale).to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * scale).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    chunk: int = 1024,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the summed cross-entropy of `hidden @ weightᵀ` with `labels`; positions with label -100 are ignored.

    Under autocast the matmul dtype is that of a linear layer.

    Args:
        hidden: (..., E).
        weight: (V, E), of the head.
        labels: (...).
        chunk: positions whose logits exist at one time.
        positions: indices of the target tokens among the flattened labels; None to find them, which waits for the
            device of the labels.

    Returns:
        A number in float32 (float64 for float64).
    """
    if positions is None:
        positions = find_targets(labels)
    hidden, labels = hidden.flatten(0, -2)[positions], labels.flatten()[positions]
    device = hidden.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    with without_autocast(hidden.device):
        return _LinearCrossEntropy.apply(hidden, weight.to(hidden.dtype), labels, chunk)


def use_training_forward(model: LlavaUhdForConditionalGeneration, loss_chunk: int) -> None:
    """Replace the model's forward for training: a loss without logits, and the same graph for every batch.

    A text-only batch encodes a small blank image with zero weight: otherwise unused parameters would get no gradient,
    and devices that synchronize gradients would deadlock.
    """

    def forward(
        self: LlavaUhdForConditionalGeneration,
        labels: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
        attention_mask: torch.Tensor | None = None,
        target_positions: torch.Tensor | None = None,
        **inputs: Any,
    ) -> LlavaUhdCausalLMOutputWithPast:
        # The mask is the collator's, which pads on the right: there a causal model sees no padding anyway, and without
        # a mask its attention takes the faster kernel.
        blank = None
        if inputs.get("pixel_values") is None:
            blank = torch.cat(self.get_image_features(**_blank_image(self, labels.device)).pooler_output)
        outputs = self.model(**inputs, use_cache=False)
        hidden, targets = outputs.last_hidden_state[:, :-1], labels[:, 1:]
        loss = linear_cross_entropy(hidden, self.lm_head.weight, targets, loss_chunk, target_positions)
        if num_items_in_batch is None:
            num_items_in_batch = targets.ne(IGNORE).sum()
        # A batch without usable samples has zero loss.
        loss = loss / torch.as_tensor(num_items_in_batch, device=loss.device).clamp(min=1)
        if blank is not None:
            loss = loss + 0.0 * blank.float().sum()
        return LlavaUhdCausalLMOutputWithPast(loss=loss)

    # Set on the instance, so that the class, and what is saved of it, stays as it is.
    model.forward = MethodType(forward, model)


def _blank_image(model: LlavaUhdForConditionalGeneration, device: torch.device) -> dict[str, torch.Tensor]:
    """Return the inputs of one view of a few black patches."""
    side, patch = 4, model.config.vision_config.patch_size
    return {
        "pixel_values": torch.zeros(side * side, 3 * patch**2, device=device),
        "view_shapes": torch.tensor([[side, side]]),
        "num_views": torch.tensor([1]),
        "grids": torch.tensor([[0, 0]]),
    }
