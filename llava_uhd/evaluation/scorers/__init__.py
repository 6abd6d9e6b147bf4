"""Scorers: pure functions of a prediction and its references, without torch.

They compute the official metric; where the published LLaVA-UHD scripts deviate from it, `compat="llava-uhd"`
reproduces them.
"""

from .ai2d import ai2d_match
from .anls import anls
from .compat import Compat
from .declining import is_declined, judge_answer, normalize_answer
from .evalai import evalai_normalize
from .gqa import GqaAnswer, GqaScores, gqa_match, gqa_normalize, gqa_scores
from .mmbench import MmbenchAnswer, infer_choice, mmbench_circular, mmbench_match
from .mme import MmeAnswer, MmeCategory, MmeScores, mme_scores, parse_mme
from .ocrbench import OcrbenchAnswer, ocrbench_match, ocrbench_scores
from .pope import PopeScores, parse_pope, pope_scores
from .refcoco import RefcocoScores, box_iou, parse_box, refcoco_match, refcoco_scores
from .relaxed import is_number, relaxed_accuracy
from .scienceqa import (
    ScienceQaAnswer,
    ScienceQaScores,
    parse_scienceqa,
    scienceqa_index,
    scienceqa_match,
    scienceqa_scores,
)
from .seed import SeedAnswer, SeedScores, seed_match, seed_scores
from .vqa import textvqa_question, vqa_exact_accuracy, vqa_soft_accuracy

__all__ = [
    "Compat",
    "GqaAnswer",
    "GqaScores",
    "MmbenchAnswer",
    "MmeAnswer",
    "MmeCategory",
    "MmeScores",
    "OcrbenchAnswer",
    "PopeScores",
    "RefcocoScores",
    "ScienceQaAnswer",
    "ScienceQaScores",
    "SeedAnswer",
    "SeedScores",
    "ai2d_match",
    "anls",
    "box_iou",
    "evalai_normalize",
    "gqa_match",
    "gqa_normalize",
    "gqa_scores",
    "infer_choice",
    "is_number",
    "is_declined",
    "judge_answer",
    "normalize_answer",
    "mmbench_circular",
    "mmbench_match",
    "mme_scores",
    "ocrbench_match",
    "ocrbench_scores",
    "parse_box",
    "parse_mme",
    "parse_pope",
    "parse_scienceqa",
    "pope_scores",
    "refcoco_match",
    "refcoco_scores",
    "relaxed_accuracy",
    "scienceqa_index",
    "scienceqa_match",
    "scienceqa_scores",
    "seed_match",
    "seed_scores",
    "textvqa_question",
    "vqa_exact_accuracy",
    "vqa_soft_accuracy",
]
