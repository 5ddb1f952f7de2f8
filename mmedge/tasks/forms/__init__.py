"""Answer forms: what an answer looks like, and all that follows from it.

    form = open_form({"form": "label", "settings": {"labels": ["yes", "no"]}}, folder)
    form.agrees("Yes.", "yes")                                         how an answer is judged
    form.read("… So the answer is yes.", example)                      how it is read out of a teacher's text
    form.constrainer(encoder).answer(example, 16)                      what a student may write
    form.instruction()                                                 how a bigger model is told to end

Adding a form takes one file in this folder and one line here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmedge.errors import MmedgeError
from mmedge.registry import Registry
from mmedge.tasks.forms.form import AnswerForm

if TYPE_CHECKING:
    from mmedge.tasks.forms.settings import FormSettings

FORMS: Registry[type[AnswerForm]] = Registry(
    "forms",
    {
        "expression": "mmedge.tasks.forms.expression:ExpressionForm",
        "choice": "mmedge.tasks.forms.choice:ChoiceForm",
        "label": "mmedge.tasks.forms.choice:LabelForm",
        "exact": "mmedge.tasks.forms.exact:ExactForm",
        "schema": "mmedge.tasks.forms.schema:SchemaForm",
        "tools": "mmedge.tasks.forms.tools:ToolsForm",
        "regex": "mmedge.tasks.forms.regex:RegexForm",
    },
)

RENEW = "distil and export again"
__all__ = ["FORMS", "AnswerForm", "form_from_settings", "open_form"]


def form_from_settings(settings: FormSettings) -> AnswerForm:
    """Return the form that a recipe's validated settings describe; the files that they name are read.

    Raises:
        MmedgeError: A file is missing or is not what the form needs.
    """
    return FORMS[settings.kind].from_settings(settings.model_dump(exclude={"kind"}))


def open_form(value: Mapping[str, Any], folder: Path, where: str = "form") -> AnswerForm:
    """Return the form that an evaluation set or a bundle states.

    Args:
        value: `form` and `settings`, as `AnswerForm.to_json` writes them; the older `judge` and `labels` are read too.
        folder: Where the files are that the form needs.
        where: What errors call the source of the value.

    Raises:
        MmedgeError: The form is unknown, or a setting or a file is missing or wrong.
    """
    name = value.get("form", value.get("judge"))
    settings = dict(value.get("settings") or {})
    if value.get("labels") and "form" not in value:
        settings["labels"] = value["labels"]
    entry = FORMS.require(name, where)
    try:
        return entry.from_settings(settings, folder)
    except KeyError as error:
        raise MmedgeError(f"{where}: form {name!r}: the setting {error} is missing", RENEW) from None
    except (TypeError, ValueError) as error:
        raise MmedgeError(f"{where}: form {name!r}: {error}", RENEW) from None
