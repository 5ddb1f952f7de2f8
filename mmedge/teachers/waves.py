"""The requests that a collection still has to send, wave by wave, and what happens to the responses.

A subject's responses are sampled in waves of as many as are still missing (`sampling.py`); a wave is judged when all of it is
there. Without clock, network or store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmedge.annotations.annotation import Annotation
from mmedge.annotations.records import Response, Settled, Subject
from mmedge.openai import ChatReply, Completion, Message
from mmedge.tasks import Example
from mmedge.teachers.base import SampledTeacher, SampleRequest
from mmedge.teachers.plan import CollectionPlan
from mmedge.teachers.prompting import Asking
from mmedge.teachers.sampling import Reader, outcome, runs_of, seed_for, subject_state

LONGEST_TOKEN = 64  # characters; an endpoint that sends more than its tokens can hold is cut off


@dataclass(slots=True, eq=False)
class OpenSubject:
    """A claimed subject and what is known about it.

    Attributes:
        subject: The subject.
        example: Its question.
        cot: The chain of thought that is to be evaluated, or an empty text.
        responses: What came back, by number.
        pending: How many responses were asked for and have not come.
        closed: Whether it is settled, or left for the next run.
    """

    subject: Subject
    example: Example
    cot: str
    responses: dict[int, Response] = field(default_factory=dict)
    pending: int = 0
    closed: bool = False


@dataclass(slots=True, eq=False)
class TeacherRequest:
    """One request to send.

    Attributes:
        work: What it is for.
        first: Number of the first response that it asks for.
        count: How many it asks for.
        messages: The prompt, once it is about to be sent.
        worst: What it may cost at most.
        attempts: How often it failed.
        failures: How often it failed although the endpoint answers others.
    """

    work: OpenSubject
    first: int
    count: int
    messages: tuple[Message, ...] = ()
    worst: float = 0.0
    attempts: int = 0
    failures: int = 0


class WaveQueue:
    """The requests to send, in order.

    Args:
        plan: What is collected.
        prompts: How questions are asked.
        teacher: Who is asked.
        form: Reads chains of thought.
        settle: Called with every subject that needs no more responses.
    """

    def __init__(
        self, plan: CollectionPlan, prompts: Asking, teacher: SampledTeacher, form: Reader, settle: Callable[[Settled], None]
    ) -> None:
        self._plan, self._prompts, self._teacher, self._form, self._settle = plan, prompts, teacher, form, settle
        self._per_request = plan.per_request
        self._jobs: deque[TeacherRequest] = deque()

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, work: OpenSubject, *, first: bool = False) -> None:
        """Queue what a subject still needs, before or after all others, or settle it if it needs nothing more."""
        subject = work.subject
        state = subject_state(subject.wanted, subject.most, work.responses, distinct=subject.kind == "cot")
        work.pending = len(state.missing)
        if not state.missing:
            self._close(work, state.accepted, state.outcomes)
            return
        jobs = []
        for start, count in runs_of(state.missing):
            step = self._per_request or count
            jobs += [TeacherRequest(work, at, min(step, start + count - at)) for at in range(start, start + count, step)]
        if first:
            self._jobs.extendleft(reversed(jobs))
        else:
            self._jobs.extend(jobs)

    def next(self) -> TeacherRequest | None:
        """Return the request that is to be sent next, ready to be sent; it stays in the queue until `pop`."""
        while self._jobs and self._jobs[0].work.closed:
            self._jobs.popleft()
        if not self._jobs:
            return None
        job = self._jobs[0]
        if self._per_request is not None and job.count > self._per_request:  # queued before that was known
            self._jobs.insert(1, TeacherRequest(job.work, job.first + self._per_request, job.count - self._per_request))
            job.count, job.messages = self._per_request, ()
        if not job.messages:
            work = job.work
            cot = work.subject.kind == "cot"
            job.messages = self._prompts.about_question(work.example) if cot else self._prompts.about_cot(work.example, work.cot)
            job.worst = self._plan.prices.cost(*self.most_tokens(job)) if self._plan.prices.known else 0.0
        return job

    def pop(self) -> None:
        """Remove the request that `next` returned."""
        self._jobs.popleft()

    def retry(self, job: TeacherRequest) -> None:
        """Queue a request that failed before all others."""
        self._jobs.appendleft(job)

    def most_tokens(self, job: TeacherRequest) -> tuple[int, int]:
        """Return how many tokens a request may make the teacher read and write."""
        return self._teacher.most_tokens(job.messages), job.count * self._plan.max_tokens(job.work.subject.kind)

    def request(self, job: TeacherRequest) -> SampleRequest:
        """Return what is asked of the teacher."""
        subject = job.work.subject
        seed = seed_for(self._plan.seed, subject.example_id, subject.kind, subject.sample, job.first)
        return SampleRequest(job.messages, job.count, seed, self._plan.max_tokens(subject.kind))

    def answered(self, job: TeacherRequest, reply: ChatReply) -> tuple[Response, ...]:
        """Take in a reply, queue what it left out, and judge the wave if it is the last of it; return the responses."""
        work = job.work
        kind, example = work.subject.kind, work.example
        longest = LONGEST_TOKEN * self._plan.max_tokens(kind)
        responses = tuple(
            Response(number, finish, outcome(text, finish, kind, self._form, example), text)
            for number, (finish, text) in enumerate(
                (_cut(each, longest) for each in reply.completions[: job.count]), start=job.first
            )
        )
        if len(responses) < job.count and self._per_request is None:
            self._per_request = max(1, len(responses))  # the endpoint does not know `n`
        work.responses |= {response.number: response for response in responses}
        work.pending -= len(responses)
        if work.closed:
            return responses
        step, end = self._per_request or job.count, job.first + job.count
        for at in range(job.first + len(responses), end, step):
            self._jobs.appendleft(TeacherRequest(work, at, min(step, end - at)))
        if not work.pending:
            self.add(work, first=True)
        return responses

    def give_up(self, work: OpenSubject) -> None:
        """Settle a subject with what it has."""
        subject = work.subject
        state = subject_state(subject.wanted, subject.most, work.responses, distinct=subject.kind == "cot")
        self._close(work, state.accepted, state.outcomes)

    def _close(self, work: OpenSubject, accepted: Sequence[int], outcomes: tuple[tuple[int, str], ...]) -> None:
        subject, plan = work.subject, self._plan
        cot = subject.kind == "cot"
        work.closed = True
        annotations = tuple(
            Annotation(
                example_id=subject.example_id,
                kind="cot" if cot else "evaluation",
                sample=index if cot else subject.sample,
                evaluation=0 if cot else index,
                text=work.responses[number].text,
                verdict=None,
                teacher=self._teacher.name,
                origin=f"draw {number}",  # as stores have it from the first version on
            )
            for index, number in enumerate(accepted)
        )
        follow_ups: tuple[Subject, ...] = ()
        if cot and plan.evaluations:
            follow_ups = tuple(
                Subject(0, subject.example_id, "evaluation", annotation.sample, *plan.wanted("evaluation"))
                for annotation in annotations[: plan.cots]
            )
        state = "done" if len(accepted) >= subject.wanted else "given up"
        self._settle(Settled(subject, state, annotations, outcomes, follow_ups))


def _cut(completion: Completion, longest: int) -> tuple[str, str]:
    """Return how a text ended, and as much of it as is kept."""
    if len(completion.text) <= longest:
        return completion.finish, completion.text
    return "length", completion.text[:longest]
