"""The command line: quick to start, light, and short in its errors."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, is_one_line_error, mmedge, own_recipe, tiny_recipe, write_recipe

HEAVY = ("torch", "transformers", "onnxruntime", "numpy", "onnx", "optimum", "pydantic")


BARE_HELP = (
    "import typer\napp = typer.Typer(rich_markup_mode='rich')\n"
    "@app.command()\ndef one() -> None:\n    'One.'\n@app.command()\ndef two() -> None:\n    'Two.'\napp(['--help'])"
)


def _cpu_seconds(command: Sequence[str], environment: dict[str, str]) -> tuple[float, str]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def test_input_that_is_no_file_is_told_apart(tiny_run: Path, tmp_path: Path) -> None:
    found = mmedge("run", tiny_run / "bundle-int8", "--input", tmp_path)
    assert is_one_line_error(found) and "is not a regular file" in found.err
    found = mmedge("run", tiny_run / "bundle-int8", "--input", tmp_path / "none")
    assert is_one_line_error(found) and "no such file" in found.err


def test_help_is_quick(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)  # compiled once, as pip does when it installs
    ours, bare = [], []  # in turn, since a busy machine slows both
    for _ in range(6):
        seconds, shown = _cpu_seconds([sys.executable, "-m", "mmedge", "--help"], environment)
        ours.append(seconds)
        bare.append(_cpu_seconds([sys.executable, "-c", BARE_HELP], environment)[0])
    assert min(ours) < 2 * min(bare), (ours, bare)
    for verb in ("quickstart", "annotate", "distill", "export", "bench", "run"):
        assert verb in shown


def test_help_and_import_load_nothing_heavy() -> None:
    program = (
        "import sys, mmedge\nfrom mmedge import cli\n"
        "try:\n    cli.app(['--help'])\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_long_helps_have_panels() -> None:
    for command, panels in {
        "run": ("Answer", "Strategy", "Withhold answers", "Escalate withheld questions", "Files and pipes"),
        "bench": ("Questions", "Scenarios", "Device"),
        "export": ("Precisions", "Conversion"),
    }.items():
        shown = mmedge(command, "--help").out
        assert all(f"─ {panel} " in shown for panel in panels), shown


def test_a_shell_completes_verbs_and_choices() -> None:
    for words, expected in (("mmedge in", "inspect"), ("mmedge run b --strategy re", "retry")):
        asked = {"_MMEDGE_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        done = subprocess.run(
            [sys.executable, "-c", "import sys; sys.argv = ['mmedge']; from mmedge.cli import main; main()"],
            capture_output=True, text=True, check=False, env={**os.environ, **asked},
        )  # fmt: skip
        assert done.stdout.split() == [expected], done.stderr
    assert "--install-completion" in mmedge("--help").out


def test_the_schema_of_recipes_is_for_editors() -> None:
    schema = json.loads(mmedge("schema").out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert {"name", "task", "student"} <= schema["properties"].keys()
    assert set(schema["required"]) == {"task", "student"}


def test_errors_call_options_by_the_names_that_are_typed(tiny_run: Path) -> None:
    for options, complaint in (
        (
            ("--abstain-below", 0.5, "--target-accuracy", 0.9),
            "error: --abstain-below and --target-accuracy contradict each other",
        ),
        (("--choose-by", "majority"), "error: --choose-by is for the strategies samples and retry"),
        (("--escalate-to", "http://127.0.0.1:1/v1", "--escalate-model", "m"), "give --abstain-below, --target-accuracy or"),
    ):
        found = mmedge("run", tiny_run / "bundle-int8", "How many?", *options)
        assert is_one_line_error(found) and complaint in found.err


def test_a_value_of_the_wrong_kind_is_told_in_plain_words(tiny_run: Path) -> None:
    for option, value, complaint in (
        ("--abstain-below", "2", "must be at most 1"),
        ("--samples", "many", "must be a whole number"),
        ("--temperature", "hot", "must be a number"),
        ("--strategy", "best", "'best' is not one of"),
    ):
        refused = mmedge("run", tiny_run / "bundle-int8", "How many?", option, value)
        assert refused.code == 2 and complaint in refused.err and not any(word in refused.err for word in ("Input", "Value error"))


def test_an_option_with_an_old_name_works_with_a_notice(tiny_run: Path) -> None:
    old, new = (
        mmedge("run", tiny_run / "bundle-int8", f"{name}=0.3", "How many?") for name in ("--max-handed-on", "--max-withheld")
    )
    notice = "notice: --max-handed-on is now called --max-withheld"
    assert old.err.startswith(notice) and old.err.splitlines()[1:] == new.err.splitlines()


def test_running_a_bundle_loads_neither_torch_nor_transformers(tiny_run: Path) -> None:
    program = (
        "import sys\nfrom mmedge import Student\n"
        f"print(Student.load({str(tiny_run / 'bundle-int8')!r}).answer('What is 3 and 4?').text)\n"
        "assert not {'torch', 'transformers', 'onnx', 'optimum'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


@pytest.mark.parametrize("command", ["distill", "annotate"])
def test_bad_recipes_are_one_line(tmp_path: Path, command: str) -> None:
    unknown = write_recipe(tmp_path / "unknown.yaml", tiny_recipe(colour="red"))
    for recipe, complaint in ((tmp_path / "none.yaml", "no such file"), (unknown, "unknown field 'colour'")):
        found = mmedge(command, recipe, "--out", tmp_path / "run")
        assert is_one_line_error(found) and complaint in found.err
        assert not (tmp_path / "run").exists()


def test_a_traceback_comes_only_with_debug(tmp_path: Path) -> None:
    quiet, loud = mmedge("distill", tmp_path / "x.yaml"), mmedge("--debug", "distill", tmp_path / "x.yaml")
    assert is_one_line_error(quiet)
    assert "Traceback" in loud.err and loud.code != 0


def test_labels_that_the_form_cannot_read_and_missing_annotations(tmp_path: Path) -> None:
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "Which?", "label": "a colour"}\n')
    task = {"kind": "jsonl", "train_file": str(questions), "form": "expression"}
    recipe = write_recipe(
        tmp_path / "r.yaml", tiny_recipe(task=task, teacher={"kind": "recorded", "cots": str(tmp_path / "c.jsonl")})
    )
    found = mmedge("distill", recipe, "--out", tmp_path / "run")
    assert is_one_line_error(found) and "q.jsonl:1: the label 'a colour' is not an answer of the form 'expression'" in found.err
    questions.write_text("".join(f'{{"question": "Which {i}?", "label": "4"}}\n' for i in range(80)))
    found = mmedge("distill", recipe, "--out", tmp_path / "run")
    assert is_one_line_error(found) and "teacher.cots: no such file" in found.err and "c.jsonl" in found.err


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    (tmp_path / "file").write_text("in the way")
    found = mmedge("distill", recipe, "--out", tmp_path / "file")
    assert is_one_line_error(found) and "cannot write" in found.err


def test_annotate_counts_what_it_could_read(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    found = mmedge("annotate", recipe, "--out", tmp_path / "run", "-q")
    assert found.code == 0, found.err
    texts = ["chains of thought: parsed: 320 (100.0 %)", "self-evaluations: parsed: 320 (100.0 %)"]
    assert found.out.splitlines() == [*texts, f"more: mmedge review {tmp_path / 'run'}"]


def test_inspect_says_what_a_thing_is(tiny_run: Path, tmp_path: Path) -> None:
    run, student, bundle = (mmedge("inspect", tiny_run / name).out for name in ("", "student", "bundle-int8"))
    assert re.search(r"^kind +run *.*^holds .*stage1, stage2, student,", run, re.DOTALL | re.MULTILINE)
    assert re.search(r"^kind +student *.*^answers +\d+\.\d % \[.*right: validation", student, re.DOTALL | re.MULTILINE)
    assert re.search(r"^kind +bundle *.*files match their hashes.*^matrices +\d+ in int8", bundle, re.DOTALL | re.MULTILINE)
    assert not any(sign in run + student + bundle for sign in '{}"')
    assert json.loads(mmedge("inspect", tiny_run / "bundle-int8", "--json").out)["kind"] == "bundle"
    assert is_one_line_error(mmedge("inspect", tmp_path))


def test_the_source_executes_nothing_that_it_reads() -> None:
    forbidden = re.compile(r"(?<![\w.])(?:eval|exec)\(|pickle\.load|torch\.load\(|trust_remote_code=True|shell=True|yaml\.load\(")
    for path in (REPOSITORY / "mmedge").rglob("*.py"):
        assert not forbidden.search(path.read_text(encoding="utf-8")), path


def test_a_full_disk_behind_standard_output_is_one_line(tiny_run: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "mmedge", "inspect", str(tiny_run / "bundle-fp32")],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=REPOSITORY,
        )  # fmt: skip
    assert done.returncode == 1 and done.stderr.startswith("error: no space left") and "Traceback" not in done.stderr


def test_a_terminal_without_utf_8_still_gets_its_result(tiny_run: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "mmedge", "inspect", str(tiny_run)],
        capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_questions_are_never_overwritten_by_their_answers(tiny_run: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('\ufeff{"question": "What is 1 + 1?"}\n', encoding="utf-8")
    found = mmedge("run", tiny_run / "bundle-fp32", "--input", path, "--output", path)
    assert is_one_line_error(found) and "the same file" in found.err
    assert mmedge("run", tiny_run / "bundle-fp32", "--input", path, "--output", "-").code == 0  # a byte-order mark is no harm


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"question": "What is 1 + 1?", "question": "What is 2 + 2?"}', "the key 'question' occurs twice"),
        ('{"question": "What is 1 + 1?", "messages": [{"role": "user", "content": "What?"}]}', "either 'question' or 'messages'"),
        ('{"question": "What is \\ud800?"}', "half of a character"),
    ],
)
def test_lines_that_say_two_things_are_refused(tiny_run: Path, tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(line + "\n")
    found = mmedge("run", tiny_run / "bundle-fp32", "--input", path)
    assert is_one_line_error(found) and why in found.err


def test_the_end_of_a_question_that_is_too_long_is_missed_aloud(tiny_run: Path) -> None:
    found = mmedge("run", tiny_run / "bundle-fp32", "How many? " * 500, "--json")
    assert json.loads(found.out)["question_cut"] is True
    found = mmedge("run", tiny_run / "bundle-fp32", "How many? " * 500)
    assert found.code == 0 and "the end of the question was not read" in found.err


def test_results_are_not_written_into_a_bundle(tiny_run: Path, tmp_path: Path) -> None:
    bundle = tiny_run / "bundle-int8"
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "How many?"}\n')
    before = sorted(bundle.iterdir())
    for command in (
        ["evaluate", bundle, "--out", bundle, "--questions", "1", "--samples", "0", "--timed", "0"],
        ["bench", bundle, "--out", bundle, "--questions", "1", "--verdicts", "0"],
        ["run", bundle, "--input", questions, "--output", bundle / "answers.jsonl"],
    ):
        found = mmedge(*command)
        assert is_one_line_error(found) and "is a bundle" in found.err, found.err
    assert sorted(bundle.iterdir()) == before


def test_a_recipe_that_failed_before_training_can_be_corrected_in_the_same_folder(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", tiny_recipe())
    failed = mmedge("distill", recipe, "--out", tmp_path / "run", "--set", "split.validation=1000")
    assert is_one_line_error(failed) and "lower split.validation" in failed.err
    done = mmedge("distill", recipe, "--out", tmp_path / "run", "-q")
    assert done.code == 0, done.err


def test_a_smaller_bench_leaves_the_fuller_report(tiny_run: Path, tmp_path: Path) -> None:
    for questions in ("3", "1"):
        done = mmedge("bench", tiny_run / "bundle-fp32", "--questions", questions, "--verdicts", "1", "--out", tmp_path, "-q")
        assert done.code == 0, done.err
    assert json.loads((tmp_path / "bench.json").read_text())["questions"]["new_combinations"] == 3
    assert json.loads((tmp_path / "bench-partial.json").read_text())["questions"]["new_combinations"] == 1


def test_a_student_without_weights_is_no_student_to_inspect(tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "mmedge.json").write_text((tiny_run / "student" / "mmedge.json").read_text())
    found = mmedge("inspect", tmp_path)
    assert is_one_line_error(found) and "has no weights" in found.err


def test_annotate_that_can_read_nothing_fails(own_task: dict[str, Path], tiny_llama: Path, tmp_path: Path) -> None:
    values = own_recipe(own_task, tiny_llama)
    (tmp_path / "cots.jsonl").write_text('{"id": "elsewhere", "sample": 0, "teacher": "t", "text": "It is 4."}\n')
    values["teacher"] = {"kind": "recorded", "cots": str(tmp_path / "cots.jsonl")}
    found = mmedge("annotate", write_recipe(tmp_path / "r.yaml", values), "--out", tmp_path / "run")
    assert is_one_line_error(found) and "no chain of thought could be read" in found.err
