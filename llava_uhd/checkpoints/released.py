"""Former name of `checkpoints.export`; importing from here warns and names the new place."""

from ..deprecation import former_names

_EXPORT = "llava_uhd.checkpoints.export"
__getattr__ = former_names(
    __name__,
    {
        "convert_to_released": f"{_EXPORT}.convert_to_original",
        "load_config": f"{_EXPORT}.load_config",
        "list_weights": f"{_EXPORT}.list_weights",
        "check_weights": f"{_EXPORT}.check_weights",
    },
)
