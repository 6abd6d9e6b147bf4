"""Collation of samples: padded batches or packed sequences."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from ..labels import IGNORE, find_targets
from .encoding import Encoded


@dataclass(frozen=True)
class Collator:
    """Collator of the training forward pass.

    Padded: (B, longest) `input_ids`, `attention_mask` and `labels`, padding on the right.
    Packed: (1, sum of lengths) `input_ids`, `position_ids` and `labels`. Positions start anew with each sample, and by
    that, and the absence of a mask, transformers keeps samples from seeing each other; the first token of each is no
    target of the sample before it.

    Both with `target_positions`, indices of the target tokens among the flattened `labels[:, 1:]`: found here on the
    host, so that the loss does not wait for the device to find them.

    Samples that cannot be used (None) are dropped; if none remains, the batch has one token and no target tokens.
    """

    pad_token_id: int
    pack: bool = False

    def __call__(self, samples: Sequence[Encoded | None]) -> dict[str, torch.Tensor]:
        whole = [sample for sample in samples if sample is not None]
        if not whole:
            blank = torch.tensor([self.pad_token_id, self.pad_token_id])
            whole = [Encoded(blank, torch.full_like(blank, IGNORE), {})]
        ids = [sample.input_ids for sample in whole]
        labels = [sample.labels.clone() for sample in whole]
        if self.pack:
            for sample in labels:
                sample[0] = IGNORE
            batch = {
                "input_ids": torch.cat(ids)[None],
                "position_ids": torch.cat([torch.arange(len(sample)) for sample in ids])[None],
                "labels": torch.cat(labels)[None],
            }
        else:
            batch = {
                "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
                "attention_mask": pad_sequence([torch.ones_like(sample) for sample in ids], batch_first=True),
                "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE),
            }
        batch["target_positions"] = find_targets(batch["labels"][:, 1:])
        names = {name: None for sample in whole for name in sample.images}
        for name in names:
            batch[name] = torch.cat([sample.images[name] for sample in whole if sample.images])
        return batch
