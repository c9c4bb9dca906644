"""Freed memory is used again, and the user's own settings of it stand."""

import os
import platform
import subprocess
import sys

import pytest

from recbole_tema.trainer.memory import OF_THE_USER

PROBE = """
import resource, torch
from recbole_tema.trainer.memory import keep_freed_memory
changed = {call}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def step():
    return torch.ones({floats}).sum().item()
for _ in range(10):  # the first ones still leave holes that are a little too small
    step()
before = faults()
assert [step() for _ in range({steps})] == [{floats}] * {steps}
print(changed, faults() - before)
"""
STEPS = 60
FLOATS = 10_000_000  # 40 MB, more than the 32 MB that glibc would keep by itself
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc's malloc only")


def probe(call, steps=STEPS, **variables):
    """What ``call`` returned, and the page faults of steps that each fill FLOATS numbers."""
    env = {k: v for k, v in os.environ.items() if k not in (*OF_THE_USER, "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(call=call, steps=steps, floats=FLOATS)],
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
    # Each step maps its 40 MB anew, where nothing is done; a page may be a huge one.
    assert given_back > STEPS * 4 * FLOATS // max(page, 2**21)
    # Of so many steps, since in some processes one of the later ones still takes a new block.
    assert kept < given_back / 10


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_MMAP_MAX_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}],
)
def test_the_users_settings_stand(variables):
    assert probe("keep_freed_memory()", steps=1, **variables)[0] == "False"
