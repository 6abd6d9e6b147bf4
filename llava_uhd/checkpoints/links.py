"""Former name of `checkpoints.key_mapping`; importing from here warns and names the new place."""

from ..deprecation import former_names

_KEY_MAPPING = "llava_uhd.checkpoints.key_mapping"
_RENAMED = {
    "Link": "TensorMapping",
    "Dead": "UnusedTensor",
    "link_names": "build_key_mapping",
    "released_names": "original_names",
    "dead_tensors": "unused_tensors",
    "cut": "split_tensors",
    "OUR_PROJECTOR": "HF_PROJECTOR",
    "OUR_TOWER": "HF_TOWER",
    "OUR_LANGUAGE_MODEL": "HF_LANGUAGE_MODEL",
}
_SAME = ("PROJECTOR", "TOWER", "UPSAMPLER", "EMBEDDING", "HEAD", "same_shape")
__getattr__ = former_names(
    __name__,
    {former: f"{_KEY_MAPPING}.{new}" for former, new in {**_RENAMED, **dict(zip(_SAME, _SAME, strict=True))}.items()},
)
