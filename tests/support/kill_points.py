"""A process killed before its n-th change of a name in the file system, for every n that there is.

What a program leaves on the disk changes at renames and removals (files are written under other
names), so these moments stand for all.
"""

import os
import signal

CHANGES = ("replace", "rename", "unlink", "remove", "rmdir")


def killed_at(n, work):
    """Run `work` in a process that dies by SIGKILL before its n-th change; whether it came to that.

    Raises:
        AssertionError: `work` itself failed.
    """
    child = os.fork()
    if child == 0:
        try:
            _die_at(n)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, f"kill point {n}: status {status}"
    return killed


def _die_at(n):
    left = [n]

    def dying(change):
        def one(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return change(*args, **kwargs)

        return one

    for name in CHANGES:
        setattr(os, name, dying(getattr(os, name)))
