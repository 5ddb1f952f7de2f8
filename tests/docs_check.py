"""`make docs-check`: every command that README.md and the recipes show is run, in a folder of its own.

Commands are the lines that start with `$ mmedge` or `$ torchrun` in README.md's console blocks, in their order, and the
first comment lines of each recipe. They run as shown, but for two things: commands that train get `--set` options that make
the training a matter of seconds (and a student from scratch, where the recipe names weights that are not here); teachers that
are asked are an endpoint of the tests' own and a model rigged to answer; folders are those of a temporary directory; where
MMEDGE_DATA is not set, it names small files of the same form. `make` commands are checked to be targets of the Makefile.

    python -m tests.docs_check
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.conftest import REAL_DATA, REPOSITORY
from tests.rigged_model import write_rigged_model
from tests.small_data import write_small_data
from tests.teachers.endpoint import Endpoint

SMALL = (
    "student.source=scratch",
    "student.scratch={d_model: 64, d_ff: 96, d_kv: 16, heads: 4, encoder_layers: 1, decoder_layers: 1, vocabulary: 500}",
    "training.stage1={max_steps: 3, batch_size: 8}",
    "training.stage2={max_steps: 3, batch_size: 8}",
    "split.validation=10",
    "split.verdict_test=10",
    "bench.questions=5",
    "bench.verdicts=5",
)
_RUN_AS = {"mmedge": ("mmedge",), "torchrun": ("torch.distributed.run", "--standalone")}
SMALL_TASK = {"arithmetic": ("task.train=120", "task.test=6"), "data": ("task.limit=60",)}


def readme_commands() -> list[str]:
    """Return the commands of README.md's console blocks, continued lines joined."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```console\n(.*?)```", text, flags=re.DOTALL)
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


def _small(command: str, asked: dict[str, tuple[str, ...]]) -> list[str]:
    """Return the command's words, with what makes its training small.

    Args:
        command: As it is shown.
        asked: Settings for recipes whose teacher is asked, by a part of the recipe's name.
    """
    words = shlex.split(command)
    verb = words[words.index("mmedge") + 1]
    if "--precision" in words:  # which may take as many rounds as the machine is noisy
        return [*words, "--max-rounds", "2"]
    if verb not in ("quickstart", "annotate", "distill", "ablate"):
        return words
    recipe = next((word for word in words if word.endswith(".yaml")), "quickstart.yaml")
    kind = "arithmetic" if "quickstart" in recipe or "embedded" in recipe or "arithmetic" in command else "data"
    small = SMALL
    if "ablation-embedded" in recipe:  # it begins from a student that an earlier command makes
        small = tuple(setting for setting in SMALL if not setting.startswith("student."))
    comparison = ("ablation.seeds=[0]", "ablation.labels=[pseudo]") if verb == "ablate" else ()
    own = ("method.own_cots=1", "training.stage3={max_steps: 3, batch_size: 8}") if "-own" in recipe else ()
    settings = (*small, *own, *comparison, *SMALL_TASK[kind], *next((found for name, found in asked.items() if name in recipe), ()))
    return [*words, *(part for setting in settings for part in ("--set", setting))]


def main() -> int:
    """Run all commands; return how many failed."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    failed = ran = 0
    with tempfile.TemporaryDirectory() as folder, Endpoint() as endpoint:
        place = Path(folder)
        rigged = write_rigged_model(place / "rigged")
        counts = ("teacher.cots_per_question=3", "teacher.evaluations_per_cot=1", "task.limit=6")
        asked = {"endpoint": (f"teacher.base_url={endpoint.url}", *counts), "local": (f"teacher.source={rigged}", *counts)}
        shutil.copytree(REPOSITORY / "recipes", place / "recipes")
        shutil.copytree(REPOSITORY / "tests" / "docs", place, dirs_exist_ok=True)
        data = REAL_DATA or write_small_data(place / "data")
        for command in dict.fromkeys([*readme_commands(), *recipe_commands()]):
            if command.startswith("make "):
                if f"\n{command.split()[1]}:" not in makefile:
                    print(f"FAILED {command}: no such target")
                    failed += 1
                continue
            if not command.startswith(("mmedge ", "torchrun ")):
                continue
            started = time.monotonic()
            left, _, piped = command.partition(" < ")
            words = _small(left, asked)
            given = (place / piped.strip()).read_text(encoding="utf-8") if piped else ""
            done = subprocess.run(
                [sys.executable, "-m", *_RUN_AS[words[0]], *words[1:]],
                cwd=place,
                input=given,
                capture_output=True,
                text=True,
                timeout=400,
                check=False,
                env={**_environment(), "MMEDGE_DATA": str(data)},
            )
            ran += 1
            print(f"{'ok' if done.returncode == 0 else 'FAILED'} {time.monotonic() - started:5.1f} s  {command}", flush=True)
            if done.returncode != 0:
                failed += 1
                print(done.stderr[-2000:])
    print(f"docs-check: {ran} commands ran, {failed} failed")
    return failed


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "for-the-check"}


if __name__ == "__main__":
    sys.exit(min(1, main()))
