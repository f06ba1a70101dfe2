import platform
import subprocess
import sys

import pytest

from tilemix.system.machine import describe_cpu, keep_freed_memory, multiplies_bf16


def test_bf16_is_read_from_the_cpus_flags(tmp_path):
    facts = tmp_path / "cpuinfo"
    assert not multiplies_bf16(facts)  # no Linux
    facts.write_text("model name\t: x\nflags\t\t: fpu avx512_bf16_not avx512f\n")
    assert not multiplies_bf16(facts)
    facts.write_text("flags\t\t: fpu avx512f avx512_bf16 wbnoinvd\n")
    assert multiplies_bf16(facts)


def test_a_type_of_cpu_is_its_model_and_its_instructions(tmp_path):
    facts = tmp_path / "cpuinfo"
    assert describe_cpu(facts) == f"{platform.machine()} {platform.processor()}"  # no Linux
    facts.write_text(
        "model name\t: Xeon  8\ncpu MHz\t: 2599.9\nflags\t\t: fpu amx_bf16\n\nmodel name\t: Xeon 8\n"
    )
    assert describe_cpu(facts) == "flags: fpu amx_bf16; model name: Xeon 8"
    facts.write_text("processor\t: 0\nFeatures\t: fp asimd\nCPU part\t: 0xd0c\n")
    assert describe_cpu(facts) == "CPU part: 0xd0c; Features: fp asimd"


FREE_A_BLOCK = """
import re, sys
from pathlib import Path
import numpy as np
from tilemix.system.machine import keep_freed_memory

def read_resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

assert sys.argv[1] == "plain" or keep_freed_memory()
before = read_resident()
block = np.ones(8_000_000)
del block
print(read_resident() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_kept_for_the_next_use():
    plain, kept = (
        int(
            subprocess.run([sys.executable, "-c", FREE_A_BLOCK, mode], capture_output=True, check=True).stdout
        )
        for mode in ("plain", "kept")
    )
    assert plain < 4_000  # kB
    assert kept > 60_000


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr("tilemix.system.machine.ctypes.CDLL", lambda _: object())
    assert not keep_freed_memory()
