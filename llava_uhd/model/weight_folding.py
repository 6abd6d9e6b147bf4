"""Weight folding: what of the HiWin projector can be computed from its weights alone, before it sees a view.

The reference projects every position of every level to the language model's E channels before it pools them. Only the
LayerNorm in between stands against pooling first. Let a level's projection be y = W f + b, with W and b centered over
the E channels, since LayerNorm subtracts the mean anyway, and A = [W b] = Q R its thin QR decomposition. Then
|y| = |R [f; 1]|, and LN(y) = gain · Q z + bias with z = R [f; 1] / sigma. So everything between the up-sampler and the
value projection happens in K = min(D + 1, E) dimensions:

- keys: a window's query q attends to keys k = value + position + level embedding (+ bin embedding) with the score
  q_h · (W_k,h k). The queries do not depend on the view, so (W_k,h)ᵀ q_h, and its products with Q and with the
  embeddings, are weights. The key bias adds the same to every key of a query and cancels in the softmax.
- values: the attention weights sum to 1, so W_v,h and its bias act behind the weighted sum; W_v,h · gain · Q is one
  small matrix per head.
- the up-sampler is linear over space and treats channels alike, so R acts on the encoder's own map before it, and so
  do the 1x1 fix-ups x + 0.1 (F x + c) of the up-sampled maps. Constants are added behind it: kernels do not sum to 1.

RoI-Align's rows sum to less than 1 on small maps; a coordinate that is 1 everywhere goes through the pooling with z.

With gradients nothing changes but the basis: [f; 1] / sigma is pooled instead of z and A stands in for Q, since Q has
no derivative where A has not full rank, as with the zero biases of a new model; R serves sigma alone.

All of it is computed in float32, whatever the dtype of the weights.

Shapes: D channels of the encoder, E hidden size of the language model, K coordinates, S query sets, G query grid,
h heads of d channels, N views, P positions of a map.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.autograd.function import BackwardCFunction, FunctionCtx
from torch.nn import functional as F

from .attention import WindowAttention


@dataclass(frozen=True)
class ChannelFixup:
    """x + scale · (weight · (keep · x) + bias), one of the pyramid's 1x1 fix-ups.

    Attributes:
        weight: (D, D).
        bias: (D,).
        scale: weight of the fix-up.
        keep: (N, D), dropout factors of a training step, else None.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    scale: float
    keep: torch.Tensor | None = None

    def linear_part(self, x: torch.Tensor) -> torch.Tensor:
        """The part that commutes with the up-sampling: (N or 1, P, D) to (N or 1, P, D)."""
        kept = x if self.keep is None else x * self.keep[:, None]
        return x + self.scale * (kept @ self.weight.T)

    def constant_part(self) -> torch.Tensor:
        """The part that is added after the up-sampling: (D,)."""
        return self.scale * self.bias


@dataclass(frozen=True)
class PushedThrough:
    """The encoder's map in a level's coordinates, as one or two maps that are up-sampled side by side.

    Attributes:
        parts: each (N, P, channels): the last gives sigma, the first is pooled. They are the same one unless gradients
            are needed.
        offsets: (N or 1, channels) constants added to each part after 0, 1, ... 2x steps.
    """

    parts: list[torch.Tensor]
    offsets: list[list[torch.Tensor]]


def push_through(
    x: torch.Tensor, fixups: Sequence[ChannelFixup | None], r_factor: torch.Tensor, with_source: bool
) -> PushedThrough:
    """Apply everything that acts on channels before the up-sampling.

    Args:
        x: (N, P, D), the encoder's map; the identity, (1, D, D), gives the matrices that do the same.
        fixups: fix-up of each 2x step up to this level; None where it has none. Empty for level 1.
        r_factor: (K, D + 1), from `fold_level`.
        with_source: keep the source as a part, for gradients.
    """
    offsets = [x.new_zeros(1, 1, x.shape[-1])]
    for fixup in fixups:
        if fixup is None:
            offsets.append(x.new_zeros(1, 1, x.shape[-1]))
            continue
        x = fixup.linear_part(x)
        offsets = [fixup.linear_part(offset) for offset in offsets]
        offsets.append(fixup.constant_part()[None, None])
    projection = r_factor[:, :-1].T  # D, K
    parts = [x, x @ projection] if with_source else [x @ projection]
    projected = [offset @ projection for offset in offsets]
    projected[-1] = projected[-1] + r_factor[:, -1]
    if not with_source:
        return PushedThrough(parts, [[offset[:, 0]] for offset in projected])
    return PushedThrough(parts, [[offset[:, 0], p[:, 0]] for offset, p in zip(offsets, projected, strict=True)])


class _RFactor(torch.autograd.Function):
    """R of the thin QR decomposition A = Q R, for uses that R enters through RᵀR = AᵀA alone.

    The gradient of such a use has the form R S with S symmetric, and A's is A S = Q (R S): exact without an inverse,
    so also where A has not full rank.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, a: torch.Tensor) -> torch.Tensor:
        q: torch.Tensor
        r: torch.Tensor
        q, r = torch.linalg.qr(a)
        ctx.save_for_backward(q)
        return r

    @staticmethod
    def backward(ctx: BackwardCFunction, grad: torch.Tensor) -> torch.Tensor:
        q: torch.Tensor
        (q,) = ctx.saved_tensors
        return q @ grad


def fold_level(linear: nn.Linear, ln_kv: nn.LayerNorm, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold the projection of a level with the LayerNorm behind it.

    Returns:
        r_factor: (K, D + 1), R.
        basis: (E, K + 1), turns a pooled [z; 1] into a pooled value; with gradient (E, D + 2), for a pooled
            [f / sigma; 1 / sigma; 1].
    """
    wide = torch.cat([linear.weight.float(), linear.bias.float()[:, None]], dim=1)
    centered = wide - wide.mean(dim=0)
    if with_gradient:
        r_factor: torch.Tensor = _RFactor.apply(centered)  # type: ignore[no-untyped-call]  # torch's has no types
        columns = centered
    else:
        columns, r_factor = torch.linalg.qr(centered)
    gain, bias = ln_kv.weight.float()[:, None], ln_kv.bias.float()[:, None]
    return r_factor, torch.cat([gain * columns, bias], dim=1)


def window_queries(
    queries: torch.Tensor, positions: torch.Tensor, ln_q: nn.LayerNorm, attention: WindowAttention
) -> torch.Tensor:
    """Projected queries, scaled for the softmax: (S, G², E) and (G², E) to (h, G² · S, d)."""
    normed = F.layer_norm(queries.float(), ln_q.normalized_shape, ln_q.weight.float(), ln_q.bias.float(), ln_q.eps)
    projection = attention.q_proj
    q = F.linear(normed + positions.float(), projection.weight.float(), projection.bias.float())
    heads = q.view(*q.shape[:-1], attention.num_heads, -1)  # S, G², h, d
    scale: float = heads.shape[-1] ** -0.5
    return heads.permute(2, 1, 0, 3).flatten(1, 2) * scale


def score_vectors(queries: torch.Tensor, keys: torch.Tensor, windows: int) -> torch.Tensor:
    """Scores of every query against K key vectors: (h, G² · S, d), (h · d, K) to (G², h · S, K)."""
    heads = len(queries)
    scores = queries @ keys.view(heads, -1, keys.shape[-1])  # h, G² · S, K
    return scores.view(heads, windows, -1, keys.shape[-1]).transpose(0, 1).flatten(1, 2)


@dataclass(frozen=True)
class FoldedLevel:
    """One level's part of `FoldedWeights`.

    Attributes:
        r_factor: (K, D + 1), R.
        scores: (G², h · S, K + 1), heads outermost; with gradient D + 2 for K + 1, here and below.
        values: (h, K + 1, d).
        bin_scores: (G², h · S, 9), each query's scores against the bin embeddings; None without them.
    """

    r_factor: torch.Tensor
    scores: torch.Tensor
    values: torch.Tensor
    bin_scores: torch.Tensor | None


@dataclass(frozen=True)
class FoldedWeights:
    """The projector's weights, computed as far as they go without a view.

    Attributes:
        levels: one each.
        positional_scores: (G², h · S, G²), each query's scores against the query grid's positions.
        key_bias: (G², h · S, 1), each query's score against the key bias. It changes nothing, and is there so that
            the bias takes part in a training step.
        value_bias: (h, 1, d).
        push_through: matrices and constants that `push_through` would apply, for each level, without gradient.
    """

    levels: list[FoldedLevel]
    positional_scores: torch.Tensor
    key_bias: torch.Tensor
    value_bias: torch.Tensor
    push_through: list[PushedThrough]

    @property
    def nbytes(self) -> int:
        """Memory that is held, in bytes."""
        tensors = [self.positional_scores, self.key_bias, self.value_bias]
        for level in self.levels:
            tensors += [level.r_factor, level.scores, level.values]
            tensors += [] if level.bin_scores is None else [level.bin_scores]
        for pushed in self.push_through:
            tensors += [*pushed.parts, *(offset for offsets in pushed.offsets for offset in offsets)]
        return sum(tensor.nbytes for tensor in tensors)

    def with_values(self, dtype: torch.dtype) -> "FoldedWeights":
        """Return the same with its value matrices in another dtype."""
        return replace(self, levels=[replace(level, values=level.values.to(dtype)) for level in self.levels])


@dataclass(frozen=True)
class LevelWeights:
    """The weights of a level before folding.

    Attributes:
        linear: projection of the level, D to E.
        embedding: (E,), the level's embedding.
        bin_embedding: (9, E), or None.
        fixups: see `push_through`; ignored with gradient.
    """

    linear: nn.Linear
    embedding: torch.Tensor
    bin_embedding: torch.Tensor | None
    fixups: Sequence[ChannelFixup | None]


def fold_weights(
    levels: Sequence[LevelWeights],
    ln_kv: nn.LayerNorm,
    queries: torch.Tensor,
    positions: torch.Tensor,
    attention: WindowAttention,
    with_gradient: bool,
) -> FoldedWeights:
    """Fold the weights. About 250 GFLOP at the published size.

    Args:
        levels: weights of each level.
        ln_kv: the LayerNorm behind the projections.
        queries: (h, G² · S, d), from `window_queries`.
        positions: (G², E), the query grid's position embedding.
        attention: module whose key and value projections are folded.
        with_gradient: fold into the form that autograd can pass through.
    """
    key_weight, value_weight = attention.k_proj.weight.float(), attention.v_proj.weight.float()
    heads, windows = len(queries), len(positions)
    folded, matrices = [], []
    for level in levels:
        r_factor, basis = fold_level(level.linear, ln_kv, with_gradient)
        key_basis = torch.cat([basis[:, :-1], basis[:, -1:] + level.embedding.float()[:, None]], dim=1)
        scores = score_vectors(queries, key_weight @ key_basis, windows)
        values = (value_weight @ basis).view(heads, -1, basis.shape[1]).transpose(1, 2).contiguous()
        bin_scores = None
        if level.bin_embedding is not None:
            bin_scores = score_vectors(queries, key_weight @ level.bin_embedding.float().T, windows)
        folded.append(FoldedLevel(r_factor, scores, values, bin_scores))
        if not with_gradient:
            identity = torch.eye(level.linear.in_features, device=r_factor.device)[None]
            matrices.append(push_through(identity, level.fixups, r_factor, with_source=False))
    return FoldedWeights(
        folded,
        score_vectors(queries, key_weight @ positions.float().T, windows),
        score_vectors(queries, attention.k_proj.bias.float()[:, None], windows),
        attention.v_proj.bias.float().view(heads, 1, -1),
        matrices,
    )
