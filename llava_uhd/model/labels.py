"""Labels for the next-token loss: image tokens and the separators inside an image never count.

`forward(labels=...)` ignores them, and so does `ImageTextInputs`, the dictionary that the processor returns: trainers
count and read the labels of a batch themselves, before the model sees it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.feature_extraction_utils import BatchFeature


class ImageTextInputs(BatchFeature):
    """Inputs of the model. Labels that are put beside them ignore images.

    `inputs["labels"] = inputs["input_ids"].clone()` gives labels of the text alone, as the collators of trainers
    write it.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        *args: Any,
        token_ids: dict[str, int] | None = None,
        tokens_per_image: Sequence[int] = (),
        **kwargs: Any,
    ):
        """Wrap the outputs of a processor.

        Args:
            data: inputs of the model, `input_ids` among them.
            args: further arguments of `BatchFeature`.
            token_ids: `image_token_id`, `slice_separator_id` and `row_separator_id`; None for a copy whose labels are
                not set any more, as accelerate makes one on another device.
            tokens_per_image: number of image tokens of every image of the batch, in order.
            kwargs: further arguments of `BatchFeature`.
        """
        self.token_ids = token_ids
        self.tokens_per_image = list(tokens_per_image)
        super().__init__(data, *args, **kwargs)

    def __setitem__(self, key: str, item: Any) -> None:
        """Set an input; labels of the shape of `input_ids` are -100 wherever an image is."""
        if key == "labels" and self.token_ids is not None:
            item = self._without_images(item)
        super().__setitem__(key, item)

    def _without_images(self, labels: Any) -> Any:
        """Return labels without those of images, of the kind that was given: a tensor, an array, or lists."""
        input_ids = self.data.get("input_ids")
        if isinstance(labels, np.ndarray) and isinstance(input_ids, np.ndarray):
            return self._without_images_in(torch.from_numpy(labels), torch.from_numpy(input_ids)).numpy()
        if isinstance(labels, list) and isinstance(input_ids, list):
            if [len(row) for row in labels] != [len(row) for row in input_ids]:
                return labels
            lengths = [len(row) for row in labels]
            flat = [torch.tensor([[token for row in rows for token in row]]) for rows in (labels, input_ids)]
            return [row.tolist() for row in torch.split(self._without_images_in(*flat)[0], lengths)]
        if isinstance(labels, torch.Tensor) and isinstance(input_ids, torch.Tensor):
            return self._without_images_in(labels, input_ids)
        return labels

    def _without_images_in(self, labels: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        if self.token_ids is None or input_ids.shape != labels.shape:
            return labels
        num_tokens = int(torch.eq(input_ids, self.token_ids["image_token_id"]).sum())
        counts = self.tokens_per_image if num_tokens == sum(self.tokens_per_image) else None
        return ignore_images(labels, input_ids, **self.token_ids, tokens_per_image=counts)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker process of a data loader sends."""
        state: dict[str, Any] = super().__getstate__()  # type: ignore[no-untyped-call]  # transformers' has no types
        return {**state, "token_ids": self.token_ids, "tokens_per_image": self.tokens_per_image}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # likewise
        self.token_ids, self.tokens_per_image = state["token_ids"], state["tokens_per_image"]


def ignore_images(
    labels: torch.Tensor,
    input_ids: torch.Tensor | None,
    image_token_id: int,
    slice_separator_id: int,
    row_separator_id: int,
    tokens_per_image: list[int] | None = None,
) -> torch.Tensor:
    """Set the labels of image tokens and of the separators between them to -100.

    Args:
        labels: (B, length).
        input_ids: (B, length), or None: then labels that are the image token itself are ignored.
        image_token_id: token id of every image token.
        slice_separator_id: token id after a slice.
        row_separator_id: token id after a row.
        tokens_per_image: number of image tokens of every image of the batch, where it is known: whatever lies between
            the first and the last token of an image is a separator. Where it is not, up to two separators in a row
            with image tokens on both sides are.

    Returns:
        (B, length), on the device of the labels and without waiting for it.
    """
    is_image = torch.eq(labels if input_ids is None else input_ids, image_token_id)
    if input_ids is None:
        ignored = is_image
    elif tokens_per_image is not None:
        num_before = is_image.flatten().cumsum(0)  # image tokens up to a position; between images, all of some images
        ends = torch.tensor([0, *tokens_per_image]).cumsum(0).to(num_before.device, non_blocking=True)
        ignored = is_image | ~torch.isin(num_before, ends).view_as(is_image)
    else:
        separators = torch.tensor([slice_separator_id, row_separator_id], device=input_ids.device)
        is_separator = torch.isin(input_ids, separators)
        after = nn.functional.pad(is_image, (2, 0))  # after[:, i] is is_image[:, i - 2]
        before = nn.functional.pad(is_image, (0, 2))
        follows = after[:, 1:-1] | (nn.functional.pad(is_separator, (1, 0))[:, :-1] & after[:, :-2])
        precedes = before[:, 1:-1] | (nn.functional.pad(is_separator, (0, 1))[:, 1:] & before[:, 2:])
        ignored = is_image | (is_separator & follows & precedes)
    return labels.masked_fill(ignored.to(labels.device), -100)


__all__ = ["ImageTextInputs", "ignore_images"]
