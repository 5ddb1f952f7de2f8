"""Objectives: what a stage learns. An entry writes lessons and sums up their tokens' losses.

    entry = OBJECTIVES["reasoning"]
    entry.settings, entry.stages, entry.parts, entry.group, entry.reference      without torch
    objective = entry(None, source)
    objective.lessons(epoch=0)                                                   contexts and targets, as text
    objective.sums(tokens)                                                       the parts of its loss, from the tokens' losses

Adding an objective takes one file in this folder and one line here; a package adds one by the entry point `objectives.NAME`.
Recipes name further objectives in `method.objectives`.
"""

from __future__ import annotations

from mmedge.distill.objectives.objective import LessonSource, Objective, UnseenSection
from mmedge.recipe.method import ObjectiveSection
from mmedge.registry import Registry

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objectives",
    {
        "reasoning": "mmedge.distill.objectives.reasoning:Reasoning",
        "self_evaluation": "mmedge.distill.objectives.judging:Judging",
        "own_verdicts": "mmedge.distill.objectives.judging:JudgingOneself",
        "evaluation_first": "mmedge.distill.objectives.judging:EvaluationFirst",
        "evaluator": "mmedge.distill.objectives.evaluator:Evaluator",
        "inline_verdict": "mmedge.distill.objectives.inline:InlineVerdict",
        "answer_verdict": "mmedge.distill.objectives.answer_verdict:AnswerVerdict",
        "unlikelihood": "mmedge.distill.objectives.mistakes:Unlikelihood",
        "control_words": "mmedge.distill.objectives.mistakes:ControlWords",
        "preference": "mmedge.distill.objectives.preference:Preference",
    },
)

__all__ = ["OBJECTIVES", "LessonSource", "Objective", "ObjectiveSection", "UnseenSection"]
