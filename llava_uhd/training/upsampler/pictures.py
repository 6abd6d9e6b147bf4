"""Former name of `images`."""

from ...deprecation import former_names

PLACE = "llava_uhd.training.upsampler.images"

__getattr__ = former_names(
    __name__,
    {
        "Pictures": f"{PLACE}.Images",  # former name
        "ScaledPictures": f"{PLACE}.ScaledImages",  # former name
        "find_pictures": f"{PLACE}.find_images",  # former name
        "pictures_fingerprint": f"{PLACE}.images_fingerprint",  # former name
        "batches": f"{PLACE}.batches",
    },
)
