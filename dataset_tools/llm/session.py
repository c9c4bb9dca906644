"""One run of a command: a backend, the store of its answers, the prompts, and what was counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.asking import Tally, ask
from dataset_tools.llm.estimate import Estimate, estimate
from dataset_tools.llm.prompts import PromptFile, load_prompt
from dataset_tools.llm.requests import Answer, Backend, Request


class NotAsked(Exception):
    """A dry run came to questions without kept answers: what follows depends on them."""


@dataclass
class Session:
    """What every stage needs to ask its questions.

    Attributes:
        backend: The language model.
        store: Where its answers are kept.
        prompts: Folder of the user's own prompt files; None for the packaged ones.
        progress: Show progress bars.
        prices: Of a million tokens in and out, for a dry run; None where unknown.
        dry: Write nothing into the dataset. Where the store is a part of a run, ask that part and
            stop; else ask nothing, and count what would be asked.
        tallies: Task -> what its questions added up to.
        estimates: Task -> what they would take, of a dry run.
        stopped: Tasks at which a dry run stopped, for want of answers.
    """

    backend: Backend
    store: AnswerStore
    prompts: Path | None = None
    progress: bool = True
    prices: tuple[float | None, float | None] = (None, None)
    dry: bool = False
    tallies: dict[str, Tally] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)

    def prompt(self, task: str) -> PromptFile:
        """The prompt file of `task`."""
        return load_prompt(task, self.prompts)

    def ask(self, task: str, requests: Sequence[Request]) -> list[Answer]:
        """An answer for each request, from the store where it is there.

        Raises:
            NotAsked: a dry run, and an answer is not in the store.
            PartDone: a part of a run, and answers of others are not in the store.
            BackendError: no further answer can be had; those so far are kept.
            DataError: answers cannot be stored.
        """
        if not requests:
            return []
        if self.dry and (self.store.readonly or self.store.part[1] == 1):
            found = estimate(self.backend, requests, self.store, *self.prices)
            self.estimates[task] = self.estimates.get(task, Estimate()) + found
            if found.kept < found.requests:
                self.stopped.append(task)
                raise NotAsked(task)
        tally = self.tallies.setdefault(task, Tally())
        return ask(
            self.backend, requests, self.store, task=task, progress=self.progress, tally=tally
        )

    def made_by(self, *tasks: str) -> str:
        """For the card: the model, and the version of each task's prompt."""
        versions = ", ".join(f"{task} {self.prompt(task).version}" for task in tasks)
        return f"{self.backend.identity}, prompts {versions}"
