"""Freed memory is kept for the process, and the user's own settings of it stand."""

import os
import platform
import subprocess
import sys

import pytest

from recbole_tema.trainer.memory import OF_THE_USER

# What the process holds after 40 MB are freed, more than the 32 MB that glibc keeps by itself.
PROBE = """
from pathlib import Path
import numpy as np  # quicker to import than torch, and of the same malloc
from recbole_tema.trainer.memory import keep_freed_memory
changed = {call}
def pages():
    return int(Path("/proc/self/statm").read_text().split()[1])
np.ones(10).sum()
before = pages()
np.ones({floats}, dtype=np.float32).sum()
print(changed, pages() - before)
"""
FLOATS = 10_000_000
pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc's malloc only")


def probe(call, **variables):
    """What ``call`` returned, and the bytes that are kept of FLOATS freed numbers."""
    env = {k: v for k, v in os.environ.items() if k not in (*OF_THE_USER, "GLIBC_TUNABLES")}
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(call=call, floats=FLOATS)],
        env={**env, **variables},
        capture_output=True,
        text=True,
        check=True,
    )
    changed, pages = done.stdout.split()
    return changed, int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_freed_memory_is_kept():
    changed, kept = probe("keep_freed_memory()")
    _, given_back = probe("None")
    assert changed == "True"
    assert kept > 0.9 * 4 * FLOATS
    assert given_back < 0.5 * 4 * FLOATS


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_MMAP_MAX_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=65536"}],
)
def test_the_users_settings_stand(variables):
    assert probe("keep_freed_memory()", **variables)[0] == "False"
