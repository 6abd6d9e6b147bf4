"""Result of a request and where its time went. Imports no torch."""

from dataclasses import dataclass

from ..confidence import Calibration, Confidence


@dataclass
class Timings:
    """Seconds spent on a request, by part; `first_token` and `total` count from its arrival.

    Attributes:
        prepare: decoding and slicing images, tokenizing text.
        wait: waiting for a free place in the batch.
        encode: encoding images.
        prefill: reading the prompt.
        decode: generating the answer.
        first_token: arrival to first token.
        total: arrival to last token.
    """

    prepare: float = 0.0
    wait: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    first_token: float = 0.0
    total: float = 0.0


@dataclass
class Result:
    """A finished answer.

    Attributes:
        text: answer without special tokens, stop strings and surrounding white space.
        token_ids: generated token ids, including the end token.
        token_probabilities: probability of each token, by the softmax of its logits before temperature and top-p.
        finish_reason: `stop`, or `length` if `max_new_tokens` ended the answer.
        num_prompt_tokens: number of prompt tokens, image tokens included.
        num_image_tokens: number of image tokens in the prompt.
        num_cached_images: number of images whose features were cached.
        timings: seconds by part.
    """

    text: str
    token_ids: list[int]
    token_probabilities: list[float]
    finish_reason: str
    num_prompt_tokens: int
    num_image_tokens: int
    num_cached_images: int
    timings: Timings

    def confidence(self, calibration: Calibration | None) -> Confidence:
        """Return the confidence in the answer.

        Args:
            calibration: calibration of the model; None if it has none.
        """
        return Confidence.of(self.token_probabilities, calibration)
