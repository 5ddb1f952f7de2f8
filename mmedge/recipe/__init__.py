"""Recipes: one YAML file that names task, teacher, student, method, training and export."""

from mmedge.recipe.ablation import ROWS, AblationSection, RowName
from mmedge.recipe.answering import AnsweringSection
from mmedge.recipe.bench import BenchSection
from mmedge.recipe.export import ExportSection
from mmedge.recipe.method import MethodSection, ObjectiveSection
from mmedge.recipe.schema import Recipe, load_recipe, recipe_values, validate, write_recipe
from mmedge.recipe.student import LoraSection, ScratchSection, StudentSection
from mmedge.recipe.synthesis import SynthesisSection
from mmedge.recipe.teacher import (
    EmbeddedTeacherSection,
    LocalTeacherSection,
    OpenAITeacherSection,
    PricesSection,
    PromptsSection,
    RecordedTeacherSection,
    SampledTeacherSection,
    TeacherSection,
)
from mmedge.recipe.training import COMPUTE_ONLY, GenerationSection, SplitSection, StageSection, TrainingSection
from mmedge.tasks.settings import ArithmeticSection, DataFolderSection, JsonlSection, TaskSection

__all__ = [
    "COMPUTE_ONLY",
    "ROWS",
    "AblationSection",
    "AnsweringSection",
    "ArithmeticSection",
    "BenchSection",
    "DataFolderSection",
    "EmbeddedTeacherSection",
    "ExportSection",
    "GenerationSection",
    "JsonlSection",
    "LocalTeacherSection",
    "LoraSection",
    "MethodSection",
    "ObjectiveSection",
    "OpenAITeacherSection",
    "PricesSection",
    "PromptsSection",
    "Recipe",
    "RecordedTeacherSection",
    "RowName",
    "SampledTeacherSection",
    "ScratchSection",
    "SplitSection",
    "StageSection",
    "StudentSection",
    "SynthesisSection",
    "TaskSection",
    "TeacherSection",
    "TrainingSection",
    "load_recipe",
    "recipe_values",
    "validate",
    "write_recipe",
]
