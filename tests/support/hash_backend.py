"""A backend whose answers are hashes, and that writes down each request that it is asked.

The value depends on the whole unit, as a batch of a real model may: what comes out of another
grouping is seen to differ. Run as a module it asks, for the tests that kill it:
`python -m tests.support.hash_backend FOLDER PART N SECONDS_PER_UNIT`.
"""

import hashlib
import json
import os
import sys
import time
from collections import deque
from itertools import islice
from pathlib import Path

import numpy as np

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.asking import PartDone, ask
from dataset_tools.llm.requests import Answer, Completion, Embedding, Prompt, Scoring, content


def completion(text):
    return Completion(Prompt("You tag.", (("tea", "hot, green"),), text), 8, ("\n",))


def scoring(text, options=("a", "b", "c")):
    return Scoring(Prompt("Tag.", (), text), Prompt("Rate.", (), text), tuple(options))


class HashBackend:
    """Answers by SHA-256; `log` gets one line for each request that is asked."""

    likelihoods = True

    def __init__(self, identity="hash", size=4, log=None, seconds=0.0, faults=(), order=1):
        self.identity, self.size, self.seconds, self.order = identity, size, seconds, order
        self.log, self.faults = log, faults
        self.asked = []

    def units(self, requests):
        return [
            list(range(start, min(start + self.size, len(requests))))
            for start in range(0, len(requests), self.size)
        ]

    def answer(self, units):
        for place, unit in list(enumerate(units))[:: self.order]:
            time.sleep(self.seconds)
            together = "\n".join(map(content, unit))
            self.asked += unit
            if self.log:
                with open(self.log, "a") as file:
                    file.write("".join(content(request) + "\n" for request in unit))
            yield place, [self.one(request, together) for request in unit]

    def one(self, request, together):
        asked = content(request)
        if any(word in asked for word in self.faults):
            return Answer(None, 7, 0, fault="an empty answer")
        digest = hashlib.sha256(f"{together}\n{asked}".encode("utf-8", "surrogatepass")).digest()
        if isinstance(request, Completion):
            return Answer(digest.hex(), 7, 3)
        if isinstance(request, Scoring):
            return Answer([byte / 7 for byte in digest[: len(request.options)]], 7, 0)
        return Answer(np.frombuffer(digest, np.uint8).astype(np.float32) / 3, 7, 0)

    def count_tokens(self, text):
        return len(text.split())


def requests(n):
    return [Embedding(f"text {i}") for i in range(n)]


def main(folder, part, n, seconds, *faults):
    """Ask; a part of a run stores its answers, a whole one writes the values to `result.json`."""
    index, n_parts = map(int, part.split("/"))
    log = Path(folder, f"asked-{index}-{n_parts}.log")
    backend = HashBackend(log=log, seconds=float(seconds), faults=faults)
    with AnswerStore(Path(folder, "store"), (index, n_parts)) as store:
        print("open", flush=True)
        try:
            answers = ask(backend, requests(int(n)), store, task="embed", progress=False)
        except PartDone:
            return
    values = [a.fault if a.fault else a.value.tolist() for a in answers]
    temporary = Path(folder, "result.tmp")
    temporary.write_text(json.dumps(values))
    os.replace(temporary, Path(folder, "result.json"))


class Served(HashBackend):
    """Has four answers under way, as a server does; after an exception it gives these."""

    def answer(self, units):
        units = enumerate(units)
        under_way = deque(islice(units, 4))
        try:
            while under_way:
                place, unit = under_way.popleft()
                under_way.extend(islice(units, 1))
                self.asked += unit
                yield place, [self.one(request, content(request)) for request in unit]
        except (Exception, KeyboardInterrupt):
            for place, unit in under_way:
                self.asked += unit
                yield place, [self.one(request, content(request)) for request in unit]
            raise


if __name__ == "__main__":
    main(*sys.argv[1:])
