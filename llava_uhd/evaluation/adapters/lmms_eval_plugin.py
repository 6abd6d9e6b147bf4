"""Entry point of the group `lmms_eval.models`: registers the model class without importing it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> "ModelManifest":
    """Return the manifest for `python -m lmms_eval --model llava_uhd --model_args pretrained=tiny --tasks ...`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="llava_uhd",
        simple_class_path="llava_uhd.evaluation.adapters.lmms_eval_model.LlavaUhdForLmmsEval",
    )
