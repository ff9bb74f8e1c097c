"""Fuzz the C kernels: build each `fuzz_*.c` with libFuzzer and two sanitizers, run it for a while.

    python tests/fuzz/run.py [--seconds 60] [--jobs 2] [--corpus FOLDER] [NAME …]

An input that crashes a fuzzer, or on which a kernel and the plain way to compute the same disagree,
is kept beside the corpus, and the exit status is 1. Without clang nothing is fuzzed, which is said.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
KERNELS = FOLDER.parents[1] / "erless/dlrm/kernels"
LAYERS = ("arithmetic", "disk", "fast_lane")
SOURCES = sorted(path for layer in LAYERS for path in KERNELS.glob(f"{layer}/*.c"))
NAMES = sorted(path.stem.removeprefix("fuzz_") for path in FOLDER.glob("fuzz_*.c"))
SANITIZERS = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined")
MOST_BYTES = 4096  # of an input


def build(clang: str, name: str, target: Path) -> None:
    """Compile the fuzzer `name`."""
    options = ["-std=gnu11", "-O1", "-g", "-Wall", "-Wextra", "-Werror", *SANITIZERS]
    includes = [f"-I{KERNELS}", f"-I{FOLDER}"]
    files = [str(path) for path in (FOLDER / f"fuzz_{name}.c", *SOURCES)]
    subprocess.run([clang, *options, *includes, *files, "-o", str(target)], check=True)


def find_clang(folder: Path) -> str:
    """A clang that links libFuzzer and the sanitizers; "" and a word on why where there is none."""
    clang = shutil.which("clang")
    if clang is None:
        print("there is no clang on this machine: the kernels are not fuzzed")
        return ""
    source = folder / "probe.c"
    source.write_text("int LLVMFuzzerTestOneInput(void) { return 0; }\n", encoding="utf-8")
    command = [clang, *SANITIZERS, str(source), "-o", str(folder / "probe")]
    probe = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if probe.returncode == 0:
        return clang
    print(
        f"{clang} has no libFuzzer or sanitizers (Debian: libclang-rt-dev), so the kernels are "
        f"not fuzzed: {probe.stderr.strip().splitlines()[-1]}"
    )
    return ""


def fuzz(clang: str, name: str, corpus: Path, seconds: int) -> tuple[str, int, str]:
    """Build and run the fuzzer `name`: its name, exit status and last lines."""
    inputs = corpus / name
    inputs.mkdir(parents=True, exist_ok=True)
    binary = corpus / f"fuzz_{name}"
    build(clang, name, binary)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MOST_BYTES}",
        "-len_control=20",
        "-timeout=20",
        f"-artifact_prefix={corpus}/{name}-",
    ]
    command = [str(binary), *options, str(inputs)]
    run = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    lines = run.stderr.splitlines()
    return name, run.returncode, "\n".join(lines[-60:] if run.returncode else lines[-1:])


def main() -> int:
    """Run the fuzzers that were named, or all."""
    parser = argparse.ArgumentParser(description="Fuzz the C kernels.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--seconds", type=int, default=60, help="for each fuzzer")
    parser.add_argument("--jobs", type=int, default=2, help="fuzzers at a time")
    parser.add_argument("--corpus", type=Path, help="keep inputs here")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no fuzzer {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    corpus = options.corpus or Path(tempfile.mkdtemp(prefix="erless-fuzz-"))
    corpus.mkdir(parents=True, exist_ok=True)
    clang = find_clang(corpus)
    if not clang:
        return 0
    failed = False
    with ThreadPoolExecutor(options.jobs) as threads:
        runs = [
            threads.submit(fuzz, clang, name, corpus.resolve(), options.seconds)
            for name in options.names or NAMES
        ]
        for run in runs:
            name, status, text = run.result()
            print(f"{name}: {'failed' if status else 'clean'}: {text}", flush=True)
            failed = failed or status != 0
    if failed:
        print(f"the inputs are in {corpus}")
    elif options.corpus is None:
        shutil.rmtree(corpus)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
