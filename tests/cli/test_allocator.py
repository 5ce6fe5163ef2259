"""The command keeps freed memory mapped: a large tensor made again takes few page faults."""

import platform
import subprocess
import sys

import pytest

from reticent.cli._allocator import keep_freed_memory

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="there is no glibc")

FAULTS = """
import resource, sys
import torch
from reticent.cli._allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory({})
def one():
    for _ in range(2):
        torch.ones(50 << 20, dtype=torch.uint8)
one()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
one()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(done.stdout)


def test_memory_that_was_freed_is_not_mapped_anew() -> None:
    assert faults("keep") < 1000 < faults("leave")


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_somebody_chose_holds(name: str) -> None:
    assert not keep_freed_memory({name: "1"})
