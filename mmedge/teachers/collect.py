"""`mmedge annotate`: ask the recipe's teacher for everything that is not in the store yet.

A recorded and an embedded teacher write what they have; one that is sampled (an endpoint, a model on this machine) goes through
the collector. What it is asked is stored word by word, so that every text can be traced to its prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.collection import Collection
from mmedge.annotations.decisions import Decisions, dropped
from mmedge.annotations.questions import plain_task, task_of
from mmedge.annotations.store import AnnotationStore
from mmedge.annotations.summary import AnnotationReport, refreshed_report
from mmedge.errors import MmedgeError, missing_extra
from mmedge.folders import Run, work_on
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
from mmedge.tasks.synthesized import is_synthesized
from mmedge.teachers.base import SampledTeacher, WritingTeacher
from mmedge.teachers.collector import CollectionResult, Collector
from mmedge.teachers.embedded import EmbeddedTeacher
from mmedge.teachers.plan import NO_LIMITS, UNLIMITED, CollectionPlan, Limits, collection_plan
from mmedge.teachers.prompting import Asking, Prompts, demonstrations, load_prompts
from mmedge.teachers.recorded import RecordedTeacher
from mmedge.teachers.sampling import Reader

BATCH = 2000  # annotations per transaction: a kill loses no more, and flushing costs little


def annotate(
    recipe: Recipe,
    task: Task,
    examples: tuple[Example, ...],
    store: AnnotationStore,
    progress: Progress,
    limits: Limits = NO_LIMITS,
) -> CollectionResult | None:
    """Collect chains of thought and self-evaluations for every example that people have not dropped; stored ones are kept.

    Returns:
        How the collection ended, where the teacher is one that is sampled; else None.

    Raises:
        MmedgeError: The recipe names no teacher, the teacher fails, or the store holds another teacher's annotations.
    """
    section = recipe.teacher
    if without := dropped(Decisions(store).current()):
        examples = tuple(example for example in examples if example.id not in without)
    if isinstance(section, SampledTeacherSection):
        return _sample(section, task, examples, store, progress, collection_plan(section, limits))
    if section is None:
        raise MmedgeError("the recipe has no teacher to annotate with", "add a teacher section, or train on labels: mmedge distill")
    _write(_writing_teacher(section, task), examples, store, progress)
    return None


def collect_run(
    recipe: Recipe, folder: Path, progress: Progress, limits: Limits = NO_LIMITS
) -> tuple[CollectionResult | None, AnnotationReport]:
    """Collect annotations into a run, which other collectors may work on at the same time.

    Returns:
        How the collection ended (see `annotate`), and what the run then holds.

    Raises:
        MmedgeError: See `annotate` and `work_on`.
    """
    with work_on(folder, recipe, shared=True) as run:
        task = task_of(recipe, run)
        examples = task.load().train
        with AnnotationStore(run.annotations) as store:
            return annotate(recipe, task, examples, store, progress, limits), refreshed_report(recipe, task, store, progress)


# -------------------------------------------------------------------------------------- teachers that write by themselves


def _writing_teacher(section: RecordedTeacherSection | EmbeddedTeacherSection, task: Task) -> WritingTeacher:
    if isinstance(section, RecordedTeacherSection):
        cots = (section.cots,) if isinstance(section.cots, str) else section.cots
        evaluations = Path(section.evaluations) if section.evaluations else None
        return RecordedTeacher(tuple(map(Path, cots)), evaluations, section.max_cots, section.format)
    own = plain_task(task)
    assert isinstance(own, ArithmeticTask)  # the recipe's schema says so
    return EmbeddedTeacher(own, **section.model_dump(exclude={"kind"}))


def _write(teacher: WritingTeacher, examples: tuple[Example, ...], store: AnnotationStore, progress: Progress) -> None:
    """Store everything that a teacher writes, unless it is stored already."""
    fingerprint = teacher.fingerprint()
    if store.begin(fingerprint, replace_unfinished=True):
        there = store.counts("cot", UNLIMITED)
        examples = tuple(each for each in examples if is_synthesized(each.id) and each.id not in there)  # since it finished
        if not examples:
            return
    by_id = {example.id: example for example in examples}
    _store(teacher.chains_of_thought(examples), "chains of thought", store, progress)
    cots = [(by_id[cot.example_id], cot) for cot in store.annotations("cot", list(by_id)) if cot.example_id in by_id]
    _store(teacher.self_evaluations(cots), "self-evaluations", store, progress)
    store.finish(fingerprint)


def _store(annotations: Iterable[Annotation], name: str, store: AnnotationStore, progress: Progress) -> None:
    coming: Iterator[Annotation] = iter(annotations)
    with progress.task(name, total=None) as step:
        while batch := list(islice(coming, BATCH)):
            store.add(batch)
            step.advance(len(batch))


# -------------------------------------------------------------------------------------------- teachers that are sampled


def prompts_of(section: SampledTeacherSection, task: Task) -> Prompts:
    """Return the prompts of a teacher that is sampled."""
    files, shown = section.prompts, demonstrations(plain_task(task), section.examples)
    return load_prompts(task, Path(files.cot) if files.cot else None, Path(files.evaluation) if files.evaluation else None, shown)


def _sample(
    section: SampledTeacherSection,
    task: Task,
    examples: tuple[Example, ...],
    store: AnnotationStore,
    progress: Progress,
    plan: CollectionPlan,
) -> CollectionResult:
    prompts = prompts_of(section, task)
    plan = checked_limits(plan, Run(store.path.parent).synthesis)
    return ask_teacher(section, task.form, examples, prompts, plan, store, progress, "annotations")


def checked_limits(plan: CollectionPlan, other: Path) -> CollectionPlan:
    """Return a plan whose limits count what another store of the run says was spent.

    Raises:
        MmedgeError: The cost is limited, and not known.
    """
    if plan.limits.max_cost is not None and not plan.prices.known:
        raise MmedgeError(
            "a maximum cost requires teacher.prices: what a million tokens cost",
            "set teacher.prices.input and teacher.prices.output, or limit the requests (--max-requests)",
        )
    if not other.is_file() or plan.limits.spending() is None:
        return plan
    with AnnotationStore(other) as store:
        return replace(plan, limits=replace(plan.limits, elsewhere=Collection(store).spent()))


def ask_teacher(
    section: SampledTeacherSection,
    form: Reader,
    examples: Sequence[Example],
    prompts: Asking,
    plan: CollectionPlan,
    store: AnnotationStore,
    progress: Progress,
    name: str,
) -> CollectionResult:
    """Ask a teacher for everything that a plan wants and a store lacks.

    Args:
        section: The teacher's.
        form: Reads what comes.
        examples: What is asked about.
        prompts: How.
        plan: What is wanted, within which limits.
        store: Where everything goes.
        progress: Where progress is shown.
        name: What is collected, for the progress.

    Raises:
        MmedgeError: Another teacher's texts are in this store; see also `Collector.run`.
    """
    teacher = _sampled_teacher(section)
    description = _description(section, prompts)
    _begin(store, description)
    endpoint = section.base_url if isinstance(section, OpenAITeacherSection) else "this machine"
    configuration = Collection(store).configuration(canonical_json({**description, "endpoint": endpoint}))
    return Collector(store, teacher, form, examples, prompts, plan, configuration, progress, name).run()


def _sampled_teacher(section: SampledTeacherSection) -> SampledTeacher:
    if isinstance(section, OpenAITeacherSection):
        try:
            from mmedge.teachers.endpoint import EndpointTeacher
        except ImportError as error:
            raise missing_extra(error.name or "aiohttp", "annotate") from None
        from mmedge.openai import ChatProtocol

        chat = ChatProtocol(
            section.base_url,
            section.model,
            section.api_key_env,
            temperature=section.temperature,
            top_p=section.top_p,
            stop=section.stop,
            extra=section.extra,
        )
        return EndpointTeacher(chat, section.concurrency, section.timeout_seconds)
    assert isinstance(section, LocalTeacherSection)
    from mmedge.teachers.local import LocalTeacher

    return LocalTeacher(
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
        thinking=section.thinking,
    )


def _description(section: SampledTeacherSection, prompts: Asking) -> Mapping[str, object]:
    """Return what decides which texts a teacher writes: model, sampling, prompts."""
    names = ["kind", "temperature", "top_p", "max_cot_tokens", "max_evaluation_tokens", "stop", "seed"]
    names += ("model", "extra") if isinstance(section, OpenAITeacherSection) else ("source", "revision", "dtype", "quantization")
    values = section.model_dump(mode="json")
    names += ["thinking"] if values.get("thinking") is not None else []
    return {name: values[name] for name in names} | {"prompts": prompts.to_json()}


def _difference(name: str, before: Any, now: Any) -> str:
    """Return what differs from the teacher before, as an error names it."""
    if name != "prompts":
        return f"{name} ({before!r:.40}, now {now!r:.40})"
    parts = [part for part in {*before, *now} if before.get(part) != now.get(part)] if isinstance(before, dict) else []
    return "prompts (the questions that teacher.examples shows)" if parts == ["examples"] else "prompts"


def _begin(store: AnnotationStore, description: Mapping[str, object]) -> None:
    """Record that a teacher begins; if another one did before, say how it differs.

    Raises:
        MmedgeError: Another teacher's annotations are in this store.
    """
    try:
        store.begin(sha256_json(description))
    except MmedgeError:
        now = json.loads(canonical_json(description))
        for content in Collection(store).configurations():
            before = json.loads(content)
            changed = [_difference(name, before.get(name), now[name]) for name in now if before.get(name) != now[name]]
            if changed:
                raise MmedgeError(
                    f"{store.path} holds annotations of a teacher that differs in {', '.join(changed)}",
                    "choose another --out folder, or undo the change",
                ) from None
        raise
