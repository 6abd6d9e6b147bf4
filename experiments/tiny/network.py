"""The network in training: the model, with the matrix and the readout that go when it is finished.

`code_map` takes the projector's tokens into the language model's embeddings and is multiplied into the projector in
the end; the readout compares tokens with the vectors of the code, slot by slot.

Shapes: B batch, L length, T image tokens of the batch, E width, S slots, P patches.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from llava_uhd.model.hiwin import HiWinProjector
from llava_uhd.model.modeling_llava_uhd import LlavaUhdForConditionalGeneration
from llava_uhd.model.vision_tower import encode_views
from llava_uhd.synthetic.varied.notes import NOTED

from ..common.trainer import EvaluationMode
from ..tiny_v1.tokenizer import IMAGE_ID, byte_id
from .locations import HALVES, LOCATION_ID, SIDES, first_note_id
from .setting import Setting, build_config
from .symbols import EMPTY, NUM_PLAIN, SYMBOL_OF, encode_symbols, symbol_vectors, window_locations

POSITION_SCALE = 0.4
EMBEDDING_SCALE = 0.5
HALF_SCALE = 0.25
HEAD_SCALE = 0.1
# After so many layers the language model should know of which slice an image token is.
SLICE_LAYER = 2
# Logit by which a new projector looks at the middle of a window in the encoder's own map: most of its attention.
MIDDLE = 8.0


@torch.no_grad()
def draw_positions(table: torch.Tensor) -> None:
    """Set the positions of a square grid, (1 + g², D), to sines and cosines of row and column.

    They are learned from there on. Attention to a neighbor is the same product everywhere with them, which random
    positions would have to learn place by place.
    """
    side, count = round((len(table) - 1) ** 0.5), table.shape[1] // 4
    place = torch.arange(side, dtype=torch.float32)
    # Wavelengths from two patches to four times the grid.
    angles = place[:, None] * math.pi * torch.logspace(0, -math.log10(2 * side), count)
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    grid = torch.cat([waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)], dim=-1)
    table.normal_(std=0.02)
    table[1:, : 4 * count] += POSITION_SCALE * grid.flatten(0, 1)


class Readout(nn.Module):
    """Scores of the symbols in each slot of a token: its similarity to the code's vectors."""

    vectors: torch.Tensor
    locations: torch.Tensor

    def __init__(self, setting: Setting):
        super().__init__()
        self.register_buffer("vectors", symbol_vectors(setting), persistent=False)
        self.register_buffer("locations", window_locations(setting), persistent=False)
        # With these biases the nearest vector has the largest score from the beginning, the empty slot's included.
        # Biases that begin at zero take more than a thousand steps there.
        self.scale = nn.Parameter(torch.tensor(2.0))
        nearest = -self.vectors.square().sum(dim=1) / self.vectors.shape[1] ** 0.5
        self.bias = nn.Parameter(nearest.repeat(setting.slots, 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(..., E) to (..., S, symbols)."""
        parts = tokens.unflatten(-1, (-1, self.vectors.shape[1]))
        return self.scale * (parts @ self.vectors.T) / parts.shape[-1] ** 0.5 + self.bias


class Outputs(NamedTuple):
    """Output of the language model.

    Attributes:
        hidden: (B, L, E), its output.
        found: (heads, points), attention of the taught heads to the positions pointed at.
        before: (heads, positions), attention of the heads that look back to the position before, where it is in the
            sequence.
        slices: (T, 2, most slices + 1), scores of the row and column of the slice of each image token.
    """

    hidden: torch.Tensor
    found: torch.Tensor
    before: torch.Tensor
    slices: torch.Tensor


class Network(EvaluationMode):
    """Model, `code_map` and readouts.

    Attributes:
        fixed: names of parameters that no phase trains.
        patch_heads: heads of the tower's own phases: scores of the cells of a patch, and tokens of windows, which the
            projector begins with; see `begin_projector`.
        slice_head: scores of row and column of an image token's slice. The code says where in its view a window lies;
            of which view it is, only the order of the tokens says.
        heads: (layer, head) of the attention heads that are taught to look at the token of the next character: one of
            the second layer finds where printed text continues (the first layer tells it what stands before), one of
            the fourth does with more letters, one of the last but one finds what was asked for, and through those of
            the last fits the token's whole code.
        looking_back: layers whose first head is taught to look at the position before: the first, for what stands
            before a character, and the third, for where the second looked one character ago.
    """

    def __init__(self, setting: Setting, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.setting = setting
        self.model = LlavaUhdForConditionalGeneration(build_config(setting))
        self.code_map = nn.Linear(setting.width, setting.width, bias=False)
        self.readout = Readout(setting)
        self.slice_head = nn.Linear(setting.width, 2 * (setting.max_slices + 1))
        # A window is a square of patches.
        self.window_side = setting.view_size // setting.patch_size // setting.query_grid
        window = self.window_side**2 * setting.vision_width
        self.patch_heads = nn.ModuleDict(
            {
                "cells": nn.Linear(setting.vision_width, math.prod(setting.cells) * NUM_PLAIN),
                "slots": nn.Sequential(
                    nn.RMSNorm(window, elementwise_affine=False), nn.Linear(window, setting.width, bias=False)
                ),
            }
        )
        self._draw_language_model()
        draw_positions(self.tower.embeddings.position_embedding.weight)
        last, groups = setting.text_layers - 1, setting.text_heads // setting.key_value_heads
        self.fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.eval()
        fitting = [(last, head) for head in range(0, setting.text_heads, groups)]
        self.heads = tuple(dict.fromkeys([(1, 0), (min(3, last - 1), 0), (last - 1, 0), *fitting]))

    @property
    def looking_back(self) -> tuple[int, ...]:
        return tuple(layer for layer in (0, 2) if layer < self.setting.text_layers)

    @property
    def tower(self) -> Any:
        return self.model.model.vision_tower

    @property
    def projector(self) -> Any:
        return self.model.model.multi_modal_projector

    @property
    def language_model(self) -> Any:
        return self.model.model.language_model

    @torch.no_grad()
    def _draw_language_model(self) -> None:
        """Begin with layers that add nothing, and with characters that resemble the codes of their windows.

        What a layer compares are then tokens, not the noise of the layers below, and a letter of a question is found
        in the image from the beginning; so is the place that a location token names.
        """
        embeddings, head = self.language_model.embed_tokens.weight, self.model.lm_head.weight
        nn.init.orthogonal_(self.code_map.weight, gain=EMBEDDING_SCALE)
        nn.init.normal_(embeddings, std=EMBEDDING_SCALE)
        for layer in self.language_model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for character, symbol in SYMBOL_OF.items():
            if character.isascii():
                # In every slot, as long as a code of two characters.
                window = torch.full((self.setting.slots,), symbol)
                code = self.code_map(encode_symbols(window, self.readout.vectors)) * (2 / len(window)) ** 0.5
                embeddings[byte_id(character)] = code
                head[byte_id(character)] = HEAD_SCALE * code
        blank = torch.full((len(self.readout.locations), self.setting.slots), EMPTY)
        located = self.code_map(encode_symbols(blank, self.readout.vectors, self.readout.locations))
        halves = HALF_SCALE * torch.randn(HALVES, 1, located.shape[1])
        sides = HALF_SCALE * torch.randn(SIDES, located.shape[1])
        windows = located.unflatten(0, (self.setting.query_grid, 1, -1, 1))  # rows, halves, columns, sides
        located = (windows + halves[..., None, :] + sides).flatten(0, 3)
        embeddings[LOCATION_ID : LOCATION_ID + len(located)] = located
        head[LOCATION_ID : LOCATION_ID + len(located)] = HEAD_SCALE * located
        self._draw_notes(embeddings, head)

    def _draw_notes(self, embeddings: torch.Tensor, head: torch.Tensor) -> None:
        """Begin notes as the characters that they repeat, all apart from these by the same vector."""
        notes = first_note_id(self.setting.query_grid, self.setting.max_slices)
        apart = EMBEDDING_SCALE * torch.randn(embeddings.shape[1])
        for place, sign in enumerate(NOTED):
            embeddings[notes + place] = embeddings[byte_id(sign)] + apart
            head[notes + place] = head[byte_id(sign)] + HEAD_SCALE * apart

    def patch_features(self, patches: torch.Tensor) -> torch.Tensor:
        """The tower's features of square views: (N, H·W, 3·p·p) to (N, C, H, W)."""
        side = self.setting.view_size // self.setting.patch_size
        return encode_views(self.tower, patches, (side, side), self.model.config.vision_feature_layer)

    def cell_scores(self, features: torch.Tensor) -> torch.Tensor:
        """Scores of the symbols on the cells of each patch: (N, C, H, W) to (N, H·W, R·C, symbols)."""
        scores: torch.Tensor = self.patch_heads["cells"](features.flatten(2).transpose(1, 2))
        return scores.unflatten(-1, (-1, NUM_PLAIN))

    def window_tokens(self, features: torch.Tensor) -> torch.Tensor:
        """Tokens of each window by the head of the slots: (N, C, H, W) to (N, G², E)."""
        windows = F.unfold(features, self.window_side, stride=self.window_side).transpose(1, 2)
        tokens: torch.Tensor = self.patch_heads["slots"](windows)
        return tokens

    @torch.no_grad()
    def begin_projector(self) -> None:
        """Set the projector to what the head of the slots gives.

        It is left as it is where a window is not one patch, or a patch has as many features as a token.

        The features go through all of its layers without a change: isometric projections without a mean, so that the
        norms only scale, values and outputs that are copied, the mean of the query sets, and the bin in the middle of
        a window of the encoder's own map, which is the patch, with an embedding that all queries look for.
        """
        if self.window_side > 1 or self.setting.vision_width >= self.setting.width:
            return
        projector, width, channels = self.projector, self.setting.width, self.setting.vision_width
        passing = torch.linalg.qr(torch.eye(width)[:, :channels] - 1 / width).Q  # no column has a mean
        towards = torch.ones(width)
        towards[1::2] = -1
        for projection in projector.projections.values():
            projection.linear.weight.copy_(passing)
            projection.linear.bias.zero_()
            projection.embedding.zero_()
        bins = projector.projections["1x"].bin_embedding
        bins[len(bins) // 2] = MIDDLE / (width / projector.attention.num_heads) ** 0.5 * towards
        projector.queries.copy_(towards + 0.02 * torch.randn_like(projector.queries))
        attention = projector.attention
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
            layer.weight.copy_(torch.eye(width))
        sets = projector.join.in_features // width
        projector.join.weight.copy_(torch.eye(width).repeat(1, sets) / sets)
        for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj, projector.join):
            layer.bias.zero_()
        *_, linear = self.patch_heads["slots"].children()
        projector.proj.copy_((channels / width) ** 0.5 * passing @ linear.weight.T)

    def image_tokens(
        self, patches: torch.Tensor, view_shapes: torch.Tensor, num_views: torch.Tensor, grids: torch.Tensor
    ) -> torch.Tensor:
        """The projector's tokens of a batch of images, (T, E); see `LlavaUhdModel.get_image_features`."""
        found = self.model.model.get_image_features(patches, view_shapes, num_views, grids)
        return torch.cat(found.pooler_output)

    def hidden_states(
        self, input_ids: torch.Tensor, codes: torch.Tensor, pointers: torch.Tensor, positions: torch.Tensor
    ) -> Outputs:
        """The language model's output on sequences with codes in place of the image tokens.

        Args:
            input_ids: (B, L).
            codes: (T, E).
            pointers: (B, L), the index that the taught heads should look at, -1 where there is none.
            positions: (B, L), ascending, with gaps where tokens were left out.
        """
        embeds = self.language_model.embed_tokens(input_ids)
        mapped = self.code_map(codes).to(embeds.dtype)
        embeds = embeds.masked_scatter((input_ids == IMAGE_ID)[..., None], mapped)
        # Padding is on the right, so the causal mask alone keeps it out. With a mask of ones given, transformers does
        # not take the gaps for the beginnings of packed sequences.
        outputs = self.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask=torch.ones_like(input_ids),
            use_cache=False,
            output_hidden_states=True,
        )
        states = outputs.hidden_states
        found = [self._attention_at(states[layer], pointers, positions, layer, head) for layer, head in self.heads]
        previous = _before(positions)
        before = [self._attention_at(states[layer], previous, positions, layer, 0) for layer in self.looking_back]
        images = states[min(SLICE_LAYER, self.setting.text_layers)][input_ids == IMAGE_ID]
        slices = self.slice_head(images).unflatten(-1, (2, -1))
        return Outputs(outputs.last_hidden_state, torch.stack(found), torch.stack(before), slices)

    def _attention_at(
        self, hidden: torch.Tensor, pointers: torch.Tensor, positions: torch.Tensor, layer: int, head: int
    ) -> torch.Tensor:
        """Attention of one head to the tokens pointed at, (points,), computed again from its layer's input."""
        block = self.language_model.layers[layer]
        attention = block.self_attn
        channels, shared = attention.head_dim, self.setting.text_heads // self.setting.key_value_heads
        query_rows = slice(head * channels, (head + 1) * channels)
        key_rows = slice(head // shared * channels, (head // shared + 1) * channels)
        normed = block.input_layernorm(hidden)
        queries = F.linear(normed, attention.q_proj.weight[query_rows])
        keys = F.linear(normed, attention.k_proj.weight[key_rows])
        length = torch.arange(hidden.shape[1], device=hidden.device)
        cos, sin = self.language_model.rotary_emb(normed, positions)
        queries, keys = (each[:, 0] for each in apply_rotary_pos_emb(queries[:, None], keys[:, None], cos, sin))
        found = []
        for query, key, pointer in zip(queries, keys, pointers, strict=True):
            points = (pointer >= 0).nonzero().flatten()
            scores = (query[points] @ key.T).float() * attention.scaling
            scores = scores.masked_fill(length > points[:, None], -torch.inf)
            found.append(scores.softmax(dim=-1).gather(1, pointer[points, None]).squeeze(1))
        return torch.cat(found)


def _before(positions: torch.Tensor) -> torch.Tensor:
    """Pointers to the position before, (B, L), -1 where it was left out or is padding."""
    follows = positions[:, 1:] - positions[:, :-1] == 1
    index = torch.arange(positions.shape[1] - 1, device=positions.device)
    return F.pad(index.expand_as(follows).masked_fill(~follows, -1), (1, 0), value=-1)


@torch.no_grad()
def assemble(network: Network) -> LlavaUhdForConditionalGeneration:
    """The finished model: `code_map` becomes a part of the projector's last matrix."""
    model = LlavaUhdForConditionalGeneration(build_config(network.setting))
    model.load_state_dict(network.model.state_dict())
    projector = model.model.multi_modal_projector
    assert isinstance(projector, HiWinProjector)
    projector.proj.copy_(projector.proj @ network.code_map.weight.cpu().T)
    return model
