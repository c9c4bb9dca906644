"""Freed memory is used again, and the user's own settings of it stand."""

import os
import platform
import subprocess
import sys

import pytest

from recbole_tema.memory import OF_THE_USER

PROBE = """
import resource, torch
from recbole_tema.memory import keep_freed_memory
changed = {call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return torch.ones(25_000_000).sum().item()  # 100 MB
for _ in range(10):  # the first ones still leave holes that are a little too small
    step()
before = faults()
assert [step() for _ in range({steps})] == [25_000_000] * {steps}
print(changed, faults() - before)
"""
STEPS = 60
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc's malloc only")


def probe(call, **variables):
    """What ``call`` returned, and the page faults of STEPS steps that each fill 100 MB."""
    env = {k: v for k, v in os.environ.items() if k not in (*OF_THE_USER, "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(call=call, steps=STEPS)],
        env={**env, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    changed, faults = done.stdout.split()
    return changed, int(faults)


@glibc
def test_freed_memory_is_used_again():
    page = os.sysconf("SC_PAGE_SIZE")
    changed, kept = probe("keep_freed_memory()")
    _, given_back = probe("None")
    assert changed == "True"
    # Each step maps its 100 MB anew, where nothing is done; a page may be a huge one.
    assert given_back > STEPS * 100_000_000 // max(page, 2**21)
    # Of so many steps, since in some processes one of the later ones still takes a new block.
    assert kept < given_back / 10


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_MMAP_MAX_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}],
)
def test_the_users_settings_stand(variables):
    assert probe("keep_freed_memory()", **variables)[0] == "False"
