"""What of the HiWin projector can be worked out from its weights alone, before it sees a view.

The published projector takes every position of every level to the language model's E channels before it pools them.
Nothing but the LayerNorm in between stands against pooling first. Let a level's projection be y = W f + b, with W and
b centred over the E channels, since LayerNorm subtracts the mean anyway, and A = [W b] = Q R its thin QR
decomposition. Then |y| = |R [f; 1]|, and LN(y) = gain · Q z + bias with z = R [f; 1] / sigma. So everything between
the up-sampler and the value projection happens in K = min(D + 1, E) dimensions:

- keys: a window's query q attends to keys k = value + position + level embedding with score q_h · (W_k,h k). The
  queries do not depend on the view, so (W_k,h)ᵀ q_h, and its products with Q and with the position embedding, are
  weights. The key bias adds the same to every key of a query and cancels in the softmax.
- values: the attention weights sum to 1, so W_v,h and its bias act behind the weighted sum; W_v,h · gain · Q is one
  small matrix per head.
- the up-sampler is linear over space and treats channels alike, so R acts on the encoder's own map before it, and so
  do the 1x1 corrections x + 0.1 (F x + c) of the up-sampled maps. Constants are added behind it: kernels do not sum
  to 1.

RoI-Align's rows sum to less than 1 on small maps; a coordinate that is 1 everywhere goes through the pooling with z.

With gradients nothing changes but the basis: [f; 1] / sigma is pooled instead of z and A stands in for Q, since Q has
no derivative where A has not full rank, as with the zero biases of a fresh model; R serves sigma alone.

All of it is computed in float32, whatever the weights' type.

Shapes: D channels of the encoder, E of the language model, K of the basis, S query sets, G query grid, h heads of d
channels, P positions of any map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from .attention import WindowAttention


@dataclass(frozen=True)
class Correction:
    """x + scale · (weight · (keep · x) + bias), one of the pyramid's 1x1 corrections.

    Attributes:
        weight: (D, D).
        bias: (D,).
        scale: of the correction.
        keep: (N, D), zeros and a constant where dropout is active, else None.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    scale: float
    keep: torch.Tensor | None = None

    def linear_part(self, x: torch.Tensor) -> torch.Tensor:
        """What can be done before the doubling: (N or 1, P, D) to (N or 1, P, D)."""
        kept = x if self.keep is None else x * self.keep[:, None]
        return x + self.scale * (kept @ self.weight.T)

    def constant_part(self) -> torch.Tensor:
        """What is added after it: (D,)."""
        return self.scale * self.bias


@dataclass(frozen=True)
class Carried:
    """What passes through the up-sampler for one level, as one or two maps that go side by side.

    Attributes:
        parts: each (N, P, channels): the last gives sigma, the first is pooled. They are the same one unless gradients
            are needed.
        offsets: for 0, 1, ... doublings what is added after them to each part: (N or 1, channels).
    """

    parts: list[torch.Tensor]
    offsets: list[list[torch.Tensor]]


def carry(x: torch.Tensor, corrections: Sequence[Correction | None], root: torch.Tensor, with_source: bool) -> Carried:
    """Takes everything that acts on channels before the up-sampling.

    Args:
        x: (N, P, D), the encoder's map; the identity, (1, D, D), gives the matrices that do the same.
        corrections: of each doubling up to this level; None where it has none. Empty without doublings.
        root: (K, D + 1), from `level_root`.
        with_source: carry the source as well, for gradients.
    """
    offsets = [x.new_zeros(1, 1, x.shape[-1])]
    for correction in corrections:
        if correction is None:
            offsets.append(x.new_zeros(1, 1, x.shape[-1]))
            continue
        x = correction.linear_part(x)
        offsets = [correction.linear_part(offset) for offset in offsets]
        offsets.append(correction.constant_part()[None, None])
    turn = root[:, :-1].T
    parts = [x, x @ turn] if with_source else [x @ turn]
    turned = [offset @ turn for offset in offsets]
    turned[-1] = turned[-1] + root[:, -1]
    if not with_source:
        return Carried(parts, [[offset[:, 0]] for offset in turned])
    return Carried(parts, [[offset[:, 0], t[:, 0]] for offset, t in zip(offsets, turned, strict=True)])


class _Root(torch.autograd.Function):
    """R of the thin QR decomposition A = Q R, for uses that R enters through RᵀR = AᵀA alone.

    The gradient of such a use has the form R S with S symmetric, and A's is A S = Q (R S): exact without an inverse,
    so also where A has not full rank.
    """

    @staticmethod
    def forward(ctx, a: torch.Tensor) -> torch.Tensor:
        q, r = torch.linalg.qr(a)
        ctx.save_for_backward(q)
        return r

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
        (q,) = ctx.saved_tensors
        return q @ grad


def level_root(linear: nn.Linear, ln_kv: nn.LayerNorm, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The projection of a level, folded with the LayerNorm behind it.

    Returns:
        root: (K, D + 1), R.
        basis: (E, K + 1), what turns a pooled [z; 1] into a pooled value; with gradient (E, D + 2), for a pooled
            [f / sigma; 1 / sigma; 1].
    """
    wide = torch.cat([linear.weight.float(), linear.bias.float()[:, None]], dim=1)
    centred = wide - wide.mean(dim=0)
    if with_gradient:
        root, columns = _Root.apply(centred), centred
    else:
        columns, root = torch.linalg.qr(centred)
    gain, bias = ln_kv.weight.float()[:, None], ln_kv.bias.float()[:, None]
    return root, torch.cat([gain * columns, bias], dim=1)


def window_queries(
    queries: torch.Tensor, positions: torch.Tensor, ln_q: nn.LayerNorm, attention: WindowAttention
) -> torch.Tensor:
    """The projected queries, scaled for the softmax: (S, G², E) and (G², E) to (h, G² · S, d)."""
    normed = F.layer_norm(queries.float(), ln_q.normalized_shape, ln_q.weight.float(), ln_q.bias.float(), ln_q.eps)
    projection = attention.q_proj
    q = F.linear(normed + positions.float(), projection.weight.float(), projection.bias.float())
    q = q.unflatten(-1, (attention.num_heads, -1))  # S, G², h, d
    return q.permute(2, 1, 0, 3).flatten(1, 2) * q.shape[-1] ** -0.5


def score_vectors(queries: torch.Tensor, keys: torch.Tensor, windows: int) -> torch.Tensor:
    """What a window's pooled coordinates are multiplied with: (h, G² · S, d), (h · d, K) to (G², h · S, K)."""
    heads = len(queries)
    scores = queries @ keys.view(heads, -1, keys.shape[-1])  # h, G² · S, K
    return scores.view(heads, windows, -1, keys.shape[-1]).transpose(0, 1).flatten(1, 2)


@dataclass(frozen=True)
class FoldedLevel:
    """One level's part of `Folded`.

    Attributes:
        root: (K, D + 1), R.
        scores: (G², h · S, K + 1), heads outermost; with gradient D + 2 for K + 1, here and below.
        values: (h, K + 1, d).
    """

    root: torch.Tensor
    scores: torch.Tensor
    values: torch.Tensor


@dataclass(frozen=True)
class Folded:
    """The projector's weights, worked out as far as they go without a view.

    Attributes:
        levels: one each.
        places: (G², h · S, G²), each query's scores against the query grid's positions.
        key_bias: (G², h · S, 1), each query's score against the key bias. It changes nothing, and is there so that
            the bias takes part in a training step.
        value_bias: (h, 1, d).
        carried: without gradient, for each level the matrices and constants that `carry` would apply.
    """

    levels: list[FoldedLevel]
    places: torch.Tensor
    key_bias: torch.Tensor
    value_bias: torch.Tensor
    carried: list[Carried]

    @property
    def nbytes(self) -> int:
        """Memory that is held."""
        tensors = [self.places, self.key_bias, self.value_bias]
        tensors += [tensor for level in self.levels for tensor in (level.root, level.scores, level.values)]
        for of_level in self.carried:
            tensors += [*of_level.parts, *(offset for offsets in of_level.offsets for offset in offsets)]
        return sum(tensor.nbytes for tensor in tensors)

    def with_values(self, dtype: torch.dtype) -> "Folded":
        """The same, its value matrices in another type."""
        return replace(self, levels=[replace(level, values=level.values.to(dtype)) for level in self.levels])


def fold(
    linears: Sequence[nn.Linear],
    embeddings: Sequence[torch.Tensor],
    corrections: Sequence[Sequence[Correction | None]],
    ln_kv: nn.LayerNorm,
    queries: torch.Tensor,
    windows: int,
    positions: torch.Tensor,
    attention: WindowAttention,
    with_gradient: bool,
) -> Folded:
    """Folds the weights. About 250 GFLOP at the published size.

    Args:
        linears: the projection of each level.
        embeddings: (E,) of each level.
        corrections: see `carry`, for each level; not looked at with gradient.
        ln_kv: the LayerNorm behind the projections.
        queries: (h, G² · S, d), from `window_queries`.
        windows: G².
        positions: (G², E), the query grid's position embedding.
        attention: whose key and value projections are folded.
        with_gradient: in the form that autograd can pass through.
    """
    key_weight, value_weight = attention.k_proj.weight.float(), attention.v_proj.weight.float()
    heads = len(queries)
    levels, carried = [], []
    for linear, embedding, of_level in zip(linears, embeddings, corrections, strict=True):
        root, basis = level_root(linear, ln_kv, with_gradient)
        key_basis = torch.cat([basis[:, :-1], basis[:, -1:] + embedding.float()[:, None]], dim=1)
        values = (value_weight @ basis).view(heads, -1, basis.shape[1]).transpose(1, 2)
        levels.append(FoldedLevel(root, score_vectors(queries, key_weight @ key_basis, windows), values.contiguous()))
        if not with_gradient:
            identity = torch.eye(linear.in_features, device=root.device)[None]
            carried.append(carry(identity, of_level, root, with_source=False))
    places = score_vectors(queries, key_weight @ positions.float().T, windows)
    key_bias = score_vectors(queries, attention.k_proj.bias.float()[:, None], windows)
    return Folded(levels, places, key_bias, attention.v_proj.bias.float().view(heads, 1, -1), carried)
