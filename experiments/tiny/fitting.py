"""Pages as the image processor resizes them: as large as their letters need."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from llava_uhd.model.letter_height import LETTER, QUARTILE, fitted_size, measure_letters
from llava_uhd.synthetic.page import Page
from llava_uhd.synthetic.varied import Glyphs
from llava_uhd.synthetic.varied.sheet import Sheet

from .earlier import AnyDocument
from .setting import Setting


@dataclass(frozen=True)
class FittedDocument:
    """A document at another size than its own.

    Attributes:
        document: page or image.
        size: (width, height) in pixels at which it is seen before it is cut into slices.
    """

    document: AnyDocument
    size: tuple[int, int]

    @property
    def sheet(self) -> Sheet | Page | None:
        return self.document.sheet

    @cached_property
    def glyphs(self) -> Glyphs:
        """The characters of the document, in pixels of its resized image."""
        glyphs = self.document.glyphs
        scale = np.array(self.size) / self.document.size
        return Glyphs(
            glyphs.text,
            glyphs.runs,
            glyphs.points * scale,
            glyphs.sizes * scale[1],
            glyphs.edges * scale[0],
            glyphs.begins,
        )


def fit_letters(document: AnyDocument, setting: Setting, image: Image.Image | None) -> FittedDocument:
    """Return a document at the size at which the model is shown it.

    Args:
        document: page or image.
        setting: sizes of the model.
        image: its pixels; None where it is given as codes, and the font sizes say how high its letters are.
    """
    if setting.letter_height is None:
        return FittedDocument(document, document.size)
    num_pixels = setting.max_slices * setting.view_size**2
    if image is not None:
        measured = measure_letters(image, num_pixels)
    else:
        sizes = document.glyphs.sizes
        measured = LETTER * float(np.percentile(sizes, QUARTILE)) if len(sizes) else None
    return FittedDocument(document, fitted_size(document.size, measured, setting.letter_height, num_pixels))


AnyPage = AnyDocument | FittedDocument
