"""The kernels on arm64: cross-compiled, run under emulation, and compared with this machine's."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import erless.dlrm

KERNELS = Path(erless.dlrm.__file__).parent / "kernels"
DRIVER = Path(__file__).with_name("pool_rows.c")
CROSS, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
missing = [tool for tool in (CROSS, EMULATOR, "gcc") if shutil.which(tool) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def build(compiler: str, out: Path, *flags: str) -> Path:
    sources = sorted(str(path) for path in (KERNELS / "arithmetic").glob("*.c"))
    command = [compiler, "-O1", "-std=gnu11", "-D_GNU_SOURCE", f"-I{KERNELS}", *flags]
    command += [str(DRIVER), *sources, "-o", str(out), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def test_rows_are_pooled_as_here(tmp_path: Path) -> None:
    here = build("gcc", tmp_path / "here")
    there = build(CROSS, tmp_path / "there", "-static")
    expected = subprocess.run([here], capture_output=True, text=True, check=True)
    pooled = subprocess.run([EMULATOR, there], capture_output=True, text=True, check=True)
    assert pooled.stderr.strip() == "portable"  # NEON's four lanes, and single ones
    lines = list(zip(expected.stdout.splitlines(), pooled.stdout.splitlines(), strict=True))
    assert len(lines) == 4 * 3 * 11
    for ours, theirs in lines:
        a, b = (np.array(line.split(), np.float64) for line in (ours, theirs))
        assert len(a) > 3
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=2e-4)


def test_the_inner_loops_use_neon(tmp_path: Path) -> None:
    sources = [str(KERNELS / "arithmetic" / "gather.c")]
    command = [CROSS, "-O1", "-std=gnu11", "-D_GNU_SOURCE", f"-I{KERNELS}", "-S", "-o", "-"]
    text = subprocess.run([*command, *sources], capture_output=True, text=True, check=True).stdout
    assert text.count("fadd\tv") + text.count("fmla\tv") > 10
