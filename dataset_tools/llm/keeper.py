"""Stores answers soon after they come: those of a batch at once, single ones in groups."""

import logging
import threading
from collections.abc import Callable

from dataset_tools.llm.answers import AnswerStore
from dataset_tools.llm.requests import Answer, Request
from recbole_tema.errors import TemaError

log = logging.getLogger(__name__)

GROUP_SECONDS = 0.5  # single answers of so long a time share a transaction
GROUP_ANSWERS = 64

Row = tuple[str, Request, Answer]


class Keeper:
    """Stores rows of (key, request, answer); a timer stores those that wait for no further one.

    At the end, however it comes, all that is held is stored.

    Args:
        store: Where to.
        task: What the answers are for.
        model: The identity behind them.
        kept: Is told how many answers were stored.
    """

    def __init__(
        self, store: AnswerStore, task: str, model: str, kept: Callable[[int], None]
    ) -> None:
        self._store, self._task, self._model, self._kept = store, task, model, kept
        self._rows: dict[str, Row] = {}  # by key: a row may be given again after Ctrl-C
        self._mutex = threading.Lock()
        self._timer: threading.Timer | None = None
        self._error: Exception | None = None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            with self._mutex:
                if self._timer is not None:
                    self._timer.cancel()
                self._flush()
        except TemaError as failure:
            if error is None:
                raise
            log.error("%s", failure)  # the first error is the one that goes up
        if error is None and self._error is not None:
            raise self._error

    def add(self, rows: list[Row], at_once: bool) -> None:
        """Store rows, `at_once` or within half a second.

        Raises:
            DataError: these or earlier ones cannot be stored.
        """
        self.hold(rows)
        with self._mutex:
            if self._error is not None:
                raise self._error
            if at_once or len(self._rows) >= GROUP_ANSWERS:
                self._flush()
            elif self._rows and self._timer is None:
                self._timer = threading.Timer(GROUP_SECONDS, self._on_time)
                self._timer.daemon = True
                self._timer.start()

    def hold(self, rows: list[Row]) -> None:
        """Take rows that are stored at the end."""
        with self._mutex:
            self._rows |= {row[0]: row for row in rows}

    def _on_time(self) -> None:
        with self._mutex:
            self._timer = None
            try:
                self._flush()
            except Exception as error:  # raised again by the thread that adds
                self._error = error

    def _flush(self) -> None:
        """Store what has come. Rows go from the list only then: Ctrl-C in between loses none."""
        if self._rows:
            self._store.put(list(self._rows.values()), self._task, self._model)
            self._kept(sum(answer.fault is None for _, _, answer in self._rows.values()))
            self._rows = {}
