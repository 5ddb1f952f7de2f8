"""Every command that the recipes and README.md show runs, in their order, in one folder.

Commands are the lines that start with `$ mmedge` or `$ torchrun` in README.md's console blocks, and the first comment lines of
each recipe. They run as shown, but for a few things: commands that train get `--set` options that make the training a matter
of seconds (and a student from scratch, where the recipe names weights that are not here); teachers that are asked are an
endpoint of the tests' own and a model rigged to answer; folders are those of a temporary directory; where MMEDGE_DATA is not set,
it names small files of the same form. `make` commands must be targets of the Makefile.

    make docs-check
"""

from __future__ import annotations

import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pytest
import yaml

from mmedge.distill.objectives import OBJECTIVES
from mmedge.recipe import validate
from tests.commands import start
from tests.conftest import REAL_DATA, REPOSITORY
from tests.rigged_model import write_rigged_model
from tests.teachers.endpoint import Endpoint

pytestmark = [pytest.mark.data] if REAL_DATA else []  # then they are among what make test-data runs

SMALL = (
    "student.source=scratch",
    "student.scratch={d_model: 64, d_ff: 96, d_kv: 16, heads: 4, encoder_layers: 1, decoder_layers: 1, vocabulary: 500}",
    "training.stage1={max_steps: 3, batch_size: 8}",
    "training.stage2={max_steps: 3, batch_size: 8}",
    "split.validation=10",
    "split.verdict_test=10",
    "bench.questions=5",
    "bench.verdicts=5",
    "export.recover=never",
)
SMALL_TASK = {"arithmetic": ("task.train=120", "task.test=6"), "data": ("task.limit=60",)}
RUN_AS = {"torchrun": ("torch.distributed.run", "--standalone")}


DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*PAGES, REPOSITORY / "CHANGELOG.md", *sorted((REPOSITORY / "benchmarks").rglob("*.md"))]
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
FILES = dict(re.findall(r"<!-- file: ([\w.-]+) -->\n```\w+\n(.*?)```", TEXT, flags=re.DOTALL))
PROGRAMS = re.findall(r"<!-- run -->\n```python\n(.*?)```", TEXT, flags=re.DOTALL)


def page_commands() -> list[str]:
    """Return the commands of the pages' console blocks, continued lines joined."""
    blocks = re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").strip() for line in lines if line.startswith("$ ")]


def recipe_commands() -> list[str]:
    """Return the commands in the opening comments of the recipes."""
    found = []
    for path in sorted((REPOSITORY / "recipes").glob("*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("#"):
                break
            if match := re.match(r"#\s+(mmedge .+?)(?:\s{3,}.*)?$", line):
                found.append(match[1])
    return found


COMMANDS = list(dict.fromkeys([*recipe_commands(), *page_commands()]))
RUN = [command for command in COMMANDS if command.startswith(("mmedge ", "torchrun "))]
OPTIMUM = [command for command in RUN if "optimum" in command]
CLUSTER = [command for command in RUN if "ablate" in command and "--workers" in command]


@dataclass(frozen=True)
class Place:
    """Where the commands run.

    Attributes:
        folder: With recipes and the files that the commands name; all their runs are in it.
        data: What MMEDGE_DATA names.
        asked: Settings for recipes whose teacher is asked, by a part of the recipe's name.
    """

    folder: Path
    data: Path
    asked: dict[str, tuple[str, ...]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(REPOSITORY / "recipes", folder / "recipes")
    shutil.copytree(REPOSITORY / "tests" / "docs", folder, dirs_exist_ok=True)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    dialogues = ["build", "--out", "runs/snips-dialogues-data"]
    rigged = write_rigged_model(folder / "rigged")
    counts = ("teacher.cots_per_question=3", "teacher.evaluations_per_cot=1", "task.limit=6")
    with Endpoint() as endpoint:
        own = {"endpoint": f"teacher.base_url={endpoint.url}", "local": f"teacher.source={rigged}"}
        place = Place(folder, data, {name: (setting, *counts) for name, setting in own.items()})
        finished([sys.executable, str(REPOSITORY / "benchmarks" / "dialogues.py"), *dialogues], place)
        yield place


def small(command: str, asked: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the command's words, with what makes it a matter of seconds."""
    words = shlex.split(command)
    verb = words[words.index("mmedge") + 1]
    if "--within" in words:  # which may take as many rounds as the machine is noisy
        return [*words, "--max-rounds", "1"]
    if verb not in ("quickstart", "synthesize", "annotate", "distill", "ablate"):
        return words
    recipe = next((word for word in words if word.endswith(".yaml")), "recipes/quickstart.yaml")
    if recipe in FILES:  # small already
        own = [setting for setting in SMALL if setting.startswith(("student.", "training."))]
        if "kind: openai" in FILES[recipe]:
            own += [asked["endpoint"][0], "synthesis.count=40"]
        return [*words, *(part for setting in own for part in ("--set", setting))]
    path = REPOSITORY / recipe
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    kind = "arithmetic" if "kind: arithmetic" in text or "arithmetic" in command else "data"
    settings: tuple[str, ...] = SMALL
    if "ablation" in recipe and "source: runs/" in text:  # it begins from a student that an earlier command makes
        settings = tuple(setting for setting in SMALL if not setting.startswith("student."))
    if "prompt: chat" in text:  # a student from scratch has an encoder, and no chat template
        settings = (*settings, "student.prompt=plain", "student.frozen_layers=0")
    comparison: tuple[str, ...] = ()
    if verb == "ablate":
        more = islice(yaml.safe_load(text)["ablation"].get("more", {}).items(), 2)
        comparison = ("ablation.seeds=[0]", "ablation.labels=[pseudo]", f"ablation.more={json.dumps(dict(more))}")
    stage3 = ("method.own_cots=1", "training.stage3={max_steps: 3, batch_size: 8}") if "-own" in recipe else ()
    settings = (
        *settings,
        *stage3,
        *comparison,
        *SMALL_TASK[kind],
        *next((found for name, found in asked.items() if name in recipe), ()),
    )
    return [*words, *(part for setting in settings for part in ("--set", setting))]


@pytest.mark.parametrize("command", [command for command in RUN if command not in OPTIMUM + CLUSTER], ids=str)
def test_the_command_runs(command: str, place: Place) -> None:
    run(command, place)


@pytest.mark.optimum
@pytest.mark.parametrize("command", OPTIMUM, ids=str)
def test_the_command_runs_with_optimum(command: str, place: Place) -> None:
    run("mmedge distill recipes/quickstart.yaml --out runs/quickstart", place)
    run(command, place)


@pytest.mark.cluster
@pytest.mark.parametrize("command", CLUSTER, ids=str)
def test_the_command_runs_on_a_cluster(command: str, place: Place) -> None:
    run("mmedge distill recipes/embedded-base.yaml --out runs/embedded-base", place)
    run(command, place)


def test_the_methods_on_the_page_are_valid() -> None:
    text = (DOCS / "distillation.md").read_text(encoding="utf-8")
    parts = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    methods = [part["method"] for part in parts if "method" in part]
    assert {name for method in methods for name in method["objectives"]} == set(OBJECTIVES) - {
        "reasoning",
        "self_evaluation",
        "own_verdicts",
    }
    for part in parts:
        values = yaml.safe_load((REPOSITORY / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
        changed = {name: {**values.get(name, {}), **section} for name, section in part.items()}
        assert validate({**values, **changed}, "docs/distillation.md")


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_the_program_runs(program: str, place: Place) -> None:
    finished([sys.executable, "-"], place, program)


def run(command: str, place: Place) -> None:
    """Run a command in its folder; it must succeed."""
    left, _, piped = command.partition(" < ")
    words = small(left, place.asked)
    if words[1] == "serve" or "--page" in words:
        served(words, place)
        return
    given = (place.folder / piped.strip()).read_text(encoding="utf-8") if piped else ""
    if words[0] != "mmedge":
        return finished([sys.executable, "-m", *RUN_AS[words[0]], *words[1:]], place, given)
    (place.folder / ".given").write_text(given, encoding="utf-8")
    told = place.folder / ".told"
    started = start(words[1:], cwd=place.folder, env=environment(place), stdin=place.folder / ".given", stderr=told)
    assert started.wait(timeout=600) == 0, told.read_text(encoding="utf-8")[-2000:]


def served(words: list[str], place: Place) -> None:
    """Run a server, at any free port, until it answers; then it must end in order."""
    told = place.folder / ".told"
    told.write_text("", encoding="utf-8")
    started = start([*words[1:], "--port", 0], cwd=place.folder, env=environment(place), stderr=told)
    deadline = time.monotonic() + 120
    while " at http" not in told.read_text(encoding="utf-8"):
        assert started.poll() is None and time.monotonic() < deadline, told.read_text(encoding="utf-8")[-2000:]
        time.sleep(0.01)
    started.send_signal(signal.SIGTERM)
    assert started.wait(timeout=60) == 0, told.read_text(encoding="utf-8")[-2000:]


def environment(place: Place) -> dict[str, str]:
    """Return the environment of a command."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OPENAI_API_KEY": "for-the-check", "MMEDGE_DATA": str(place.data)}


def finished(words: list[str], place: Place, given: str = "") -> None:
    """Run words with this standard input; they must succeed."""
    done = subprocess.run(
        words,
        cwd=place.folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment(place),
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_is_made_is_a_target_of_the_makefile() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for command in COMMANDS:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in makefile, command


@pytest.mark.parametrize("page", LINKED, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not link.startswith(("https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_generated_parts_of_the_docs_are_up_to_date() -> None:
    make = runpy.run_path(str(DOCS / "make_reference.py"))
    assert make["stale"]() == [], "run: make docs"


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for page in tmp_path.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"]+)"', page.read_text(encoding="utf-8")):
            if not link.startswith(("https://", "http://", "#", "/", "data:")):
                assert (page.parent / link.partition("#")[0].partition("?")[0]).exists(), f"{page.name}: {link}"


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= 200
