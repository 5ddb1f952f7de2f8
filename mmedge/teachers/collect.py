"""`mmedge annotate`: ask the recipe's teacher for everything the store does not hold yet.

A recorded and an embedded teacher write what they have; one that is asked (an endpoint, a model on this machine) goes through
the collector. What is asked is described in the store, word by word, so that a text can always be traced to what it answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mmedge.annotations.annotation import Annotation, Teacher
from mmedge.annotations.store import AnnotationStore
from mmedge.errors import MmedgeError, missing_extra
from mmedge.progress import Progress
from mmedge.recipe import (
    EmbeddedTeacherSection,
    LocalTeacherSection,
    OpenAITeacherSection,
    Recipe,
    RecordedTeacherSection,
    SampledTeacherSection,
)
from mmedge.storage import canonical_json, sha256_json
from mmedge.tasks import Example, Task
from mmedge.tasks.embedded.problems import ArithmeticTask
from mmedge.teachers.asking import Writer
from mmedge.teachers.collector import Asked, Collected, Collector
from mmedge.teachers.embedded import EmbeddedTeacher
from mmedge.teachers.prompting import Prompts, load_prompts
from mmedge.teachers.recorded import RecordedTeacher

BATCH = 2000  # annotations per transaction: a kill loses at most so many, and a disk flush costs little


@dataclass(frozen=True)
class Limits:
    """Limits of one collection that are stricter than, or take the place of, the recipe's."""

    max_cost: float | None = None
    max_requests: int | None = None


NO_LIMITS = Limits()


def build_teacher(section: RecordedTeacherSection | EmbeddedTeacherSection, task: Task) -> Teacher:
    """Return the teacher that a recipe names, where it writes by itself."""
    if isinstance(section, RecordedTeacherSection):
        cots = (section.cots,) if isinstance(section.cots, str) else section.cots
        evaluations = Path(section.evaluations) if section.evaluations else None
        return RecordedTeacher(tuple(map(Path, cots)), evaluations, section.max_cots, section.format)
    assert isinstance(task, ArithmeticTask)  # the recipe's schema says so
    return EmbeddedTeacher(task, **section.model_dump(exclude={"kind"}))


def build_writer(section: SampledTeacherSection) -> Writer:
    """Return who is asked, where the recipe's teacher is one that is asked."""
    if isinstance(section, OpenAITeacherSection):
        try:
            from mmedge.teachers.endpoint import ChatEndpoint
        except ImportError as error:
            raise missing_extra(error.name or "httptools", "annotate") from None

        return ChatEndpoint(
            base_url=section.base_url,
            model=section.model,
            api_key_env=section.api_key_env,
            temperature=section.temperature,
            top_p=section.top_p,
            stop=section.stop,
            extra=dict(section.extra),
            concurrency=section.concurrency,
            timeout=section.timeout_seconds,
        )
    assert isinstance(section, LocalTeacherSection)
    from mmedge.teachers.local import LocalModel

    return LocalModel(
        source=section.source,
        revision=section.revision,
        tokenizer=section.tokenizer,
        dtype=section.dtype,
        quantization=section.quantization,
        device=section.device,
        batch_size=section.batch_size,
        threads=section.threads,
        temperature=section.temperature,
        top_p=section.top_p,
        stop=section.stop,
    )


def prompts_of(section: SampledTeacherSection, task: Task) -> Prompts:
    """Return the prompts of a teacher that is asked."""
    files = section.prompts
    return load_prompts(task, Path(files.cot) if files.cot else None, Path(files.evaluation) if files.evaluation else None)


def asked_of(section: SampledTeacherSection, limits: Limits = NO_LIMITS) -> Asked:
    """Return what a teacher is asked for, and within which limits."""
    asked = Asked(
        cots=section.cots_per_question,
        evaluations=section.evaluations_per_cot,
        attempts=section.attempts,
        cot_tokens=section.max_cot_tokens,
        evaluation_tokens=section.max_evaluation_tokens,
        seed=section.seed,
        max_requests=limits.max_requests,
        max_cost=limits.max_cost,
    )
    if not isinstance(section, OpenAITeacherSection):
        return replace(asked, per_request=1)  # on this machine every text is a row of a batch
    return replace(
        asked,
        per_request=section.choices_per_request,
        prices=(section.prices.input, section.prices.output),
        max_cost=section.max_cost if limits.max_cost is None else limits.max_cost,
        max_requests=section.max_requests if limits.max_requests is None else limits.max_requests,
        patience=60 * section.patience_minutes,
    )


def describe(section: SampledTeacherSection, prompts: Prompts) -> dict[str, object]:
    """Return what decides which texts a teacher that is asked writes: model, sampling, prompts."""
    names = ["kind", "temperature", "top_p", "max_cot_tokens", "max_evaluation_tokens", "stop", "seed"]
    names += ("model", "extra") if isinstance(section, OpenAITeacherSection) else ("source", "revision", "dtype", "quantization")
    values = section.model_dump(mode="json")
    return {name: values[name] for name in names} | {
        "prompts": {"cot": prompts.cot.messages, "evaluation": prompts.evaluation.messages, "labels": prompts.labels}
    }


def annotate(
    recipe: Recipe,
    task: Task,
    examples: tuple[Example, ...],
    store: AnnotationStore,
    progress: Progress,
    limits: Limits = NO_LIMITS,
) -> Collected | None:
    """Collect chains of thought and self-evaluations for every example; what is there already is kept.

    Returns:
        How the collection ended, where the teacher is one that is asked; else None.

    Raises:
        MmedgeError: The teacher fails, or the store holds another teacher's annotations.
    """
    section = recipe.teacher
    if isinstance(section, SampledTeacherSection):
        prompts = prompts_of(section, task)
        description = describe(section, prompts)
        _begin(store, description)
        endpoint = section.base_url if isinstance(section, OpenAITeacherSection) else "this machine"
        configuration = store.configuration(canonical_json(description | {"endpoint": endpoint}))
        writer, asked = build_writer(section), asked_of(section, limits)
        if asked.max_cost is not None and not any(asked.prices):
            raise MmedgeError(
                "a maximal cost needs prices: teacher.prices says what a million tokens cost",
                "set teacher.prices.input and teacher.prices.output, or limit the requests (--max-requests)",
            )
        return Collector(store, writer, task, examples, prompts, asked, configuration, progress).run()
    teacher = build_teacher(section, task)
    fingerprint = teacher.fingerprint()
    if store.begin(fingerprint, replace_unfinished=True):
        return None
    by_id = {example.id: example for example in examples}
    with progress.task("chains of thought", total=None) as step:
        for batch in _batches(teacher.chains_of_thought(examples)):
            store.add(batch)
            step.advance(len(batch))
    cots = [(by_id[cot.example_id], cot) for cot in store.annotations("cot") if cot.example_id in by_id]
    with progress.task("self-evaluations", total=None) as step:
        for batch in _batches(teacher.self_evaluations(cots)):
            store.add(batch)
            step.advance(len(batch))
    store.finish(fingerprint)
    return None


def _begin(store: AnnotationStore, description: dict[str, object]) -> None:
    """Note that a teacher that is asked begins; where another one did before, say in what it differs.

    Raises:
        MmedgeError: Another teacher's annotations are in this store.
    """
    try:
        store.begin(sha256_json(description))
    except MmedgeError:
        for (content,) in store.query("SELECT content FROM configurations"):
            before, now = json.loads(content), json.loads(canonical_json(description))
            changed = [
                name if name == "prompts" else f"{name} ({before.get(name)!r:.40}, now {now[name]!r:.40})"
                for name in now
                if before.get(name) != now[name]
            ]
            if changed:
                raise MmedgeError(
                    f"{store.path} holds annotations of a teacher that differs in {', '.join(changed)}",
                    "choose another --out folder, or set it back",
                ) from None
        raise


def most_read(recipe: Recipe) -> tuple[int | None, int | None]:
    """Return how many chains of thought per question, and evaluations of each, a recipe uses of those that a store holds."""
    section = recipe.teacher
    if isinstance(section, SampledTeacherSection):
        return section.cots_per_question, section.evaluations_per_cot
    return None, None


def _batches(annotations: Iterable[Annotation]) -> Iterator[list[Annotation]]:
    batch: list[Annotation] = []
    for annotation in annotations:
        batch.append(annotation)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
