"""Former name of `generation.decoding`; importing from here warns and names the new place."""

from ..deprecation import former_names

__getattr__ = former_names(__name__, {"Decoder": "llava_uhd.generation.decoding.Decoder"})
