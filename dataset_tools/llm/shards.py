"""Several processes with one set of questions: waiting for what the others answer.

A request that has no usable answer (a fault) is no stored answer, and yet the others must not wait
for it for ever. A lasting fault is accepted as soon as it is there. As for the others, each writer
lists the faults that it met since it began to ask (its session). A waiting process accepts such a
fault, if

- the session began after the waiting process came to this task, or
- its writer still runs: then it is the same run; or else
- GRACE_SECONDS went by: the fault is of an earlier run, and nobody began to ask again.

A writer that begins a new session drops the faults of its last one: what it may now answer is
waited for. By the same rule a process with --retry_failed accepts the lasting faults of the others;
a writer with that option forgets its own when it starts. No clock is compared between machines.

Shards that ask different questions (another --limit, say) would wait for each other for ever. So
each writes down a digest of every list of questions before it asks, and compares it with those of
the others that run.
"""

import hashlib
import logging
import time
from collections.abc import Iterable, Mapping

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.job import Job, lasting_faults
from dataset_tools.llm.requests import Answer
from recbole_tema.errors import DataError, TemaError
from recbole_tema.progress import ProgressBar

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 5.0  # seconds between two looks at what other shards did
GRACE_SECONDS = 60.0
TOLD_SECONDS = 1.0  # so long it is not worth a word that others are awaited
STARTING_SECONDS = 1.0  # within which a process that has just started clears its file


class Incomplete(TemaError):
    """This shard has done its part, and answers of other shards are not there yet."""


class Others:
    """The other shards of a store, as one list of questions is asked.

    Args:
        store: With this process' shard.
        task: What is asked, in a word.
    """

    def __init__(self, store: AnswerStore, task: str) -> None:
        self.store, self.task = store, task
        index, n_shards = store.shard
        self.shards = [i for i in range(1, n_shards + 1) if i != index]
        self._sessions = {i: store.faults(i)[0] for i in self.shards}
        self._place = self._digest = ""

    def publish(self, job: Job) -> None:
        """Say what is asked, and check that the others that run ask the same.

        Raises:
            DataError: one asks something else.
        """
        if not self.shards or self.store.readonly:
            return
        text = "\n".join(" ".join(job.keys[i] for i in unit) for unit in job.units)
        self._digest = hashlib.sha256(text.encode()).hexdigest()
        self._place = self.store.publish(self.task, self._digest)
        self._check_same(self.shards)

    def wait_for(self, job: Job, new: list[str], progress: bool, wait: bool) -> dict[str, Answer]:
        """Wait until the others have stored the answers of `new` keys; faults of theirs by key.

        Raises:
            Incomplete: `wait` is off and some are missing.
            DataError: another shard that runs asks other questions.
        """
        n_shards = self.store.shard[1]
        owner = {job.keys[i]: u % n_shards + 1 for u, unit in enumerate(job.units) for i in unit}
        faults: dict[str, Answer] = {}
        started, pause, told = time.monotonic(), FIRST_PAUSE, ""
        left = self.store.missing(key for key in new if owner[key] in self._sessions)
        bar = ProgressBar(
            total=len(job.keys), initial=len(job.keys) - len(left), desc=f"{self.task}: all shards",
            unit="req", delay=1.0, disable=not progress or not wait,
        )  # fmt: skip
        with bar:
            while left := self.store.missing(left):
                waited = time.monotonic() - started
                faults |= self._faults(left, owner, waited)
                left = [key for key in left if key not in faults]
                bar.update(len(job.keys) - len(left) - bar.n)
                if not left:
                    break
                shards = sorted({owner[key] for key in left})
                self._check_same(shards)
                text = self._awaited(shards)
                if not wait:
                    count = f"{len(left):,} answers"
                    raise Incomplete(f"{text}: {count}; run again when they have ended")
                if text != told and waited > TOLD_SECONDS:
                    log.info("%s. You may stop here, and later run again without --shard", text)
                    told = text
                time.sleep(pause)
                pause = min(pause * 1.5, LONGEST_PAUSE)
        return faults

    def _faults(
        self, keys: list[str], owner: Mapping[str, int], waited: float
    ) -> dict[str, Answer]:
        """Those of `keys` that are faults of this run (see the top of the module)."""
        found = lasting_faults(self.store, keys)
        for shard in {owner[key] for key in keys}:
            session, reasons = self.store.faults(shard)
            here = {key: Answer(None, fault=reasons[key]) for key in keys if key in reasons}
            is_new = session != self._sessions[shard] or waited >= GRACE_SECONDS
            if here and (is_new or self.store.running(shard)):
                found = here | found
        return found

    def _check_same(self, shards: Iterable[int]) -> None:
        for shard in shards:
            if self._differs(shard):
                # What it says may be of its last run, if it has just started.
                time.sleep(STARTING_SECONDS)
                if self._differs(shard):
                    index, n_shards = self.store.shard
                    raise DataError(
                        f"{self.store.folder}: shard {shard}/{n_shards} asks other questions for "
                        f"'{self.task}' than this one, {index}/{n_shards}: give all shards the "
                        "same model, prompts and numbers (--limit, --seed, --batch_size, ...) and "
                        "start them again together"
                    )

    def _differs(self, shard: int) -> bool:
        theirs = self.store.published(shard).get(self._place, self._digest)
        return theirs != self._digest and self.store.running(shard)

    def _awaited(self, shards: list[int]) -> str:
        names = [f"{i} ({'runs' if self.store.running(i) else 'does not run'})" for i in shards]
        index, n_shards = self.store.shard
        done = f"{self.task}: shard {index}/{n_shards} has done its part"
        return f"{done}; missing: shard {', '.join(names)}"
