"""What a conversion leaves out: counted, said with line numbers, and too much of it refused."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dataset_tools.options import ConversionOptions
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

SHOWN = 5  # line numbers in a message


@dataclass
class Broken:
    """Lines that were left out, and cells that were.

    Attributes:
        strict: Whether one line is an error.
        most: Share of a file's lines that may be left out; more is an error.
        files: Name of a file -> reason -> how many lines.
        cells: Name of a file -> what was not read -> how many cells were left empty.

    What is noted of a file that is read twice, as interactions and as items, counts once.
    """

    strict: bool = False
    most: float = ConversionOptions.max_broken
    files: dict[str, dict[str, int]] = field(default_factory=dict)
    cells: dict[str, dict[str, int]] = field(default_factory=dict)
    _found: dict[Path, list[tuple[int, str, str]]] = field(default_factory=dict)
    _noted: set[tuple] = field(default_factory=set)

    def add(
        self,
        path: Path,
        reason: str,
        count: int,
        first: Sequence[int],
        unit: str = "line",
        example: str | None = None,
        remedy: str = "",
    ) -> None:
        """Note `count` broken lines of `path`, the first of them with the numbers `first`.

        Fewer than one are none.

        Args:
            unit: What the numbers count: "line" of the file, or "row" of those that it could be
                split into.
            example: What was found in the first of them.
            remedy: What to do about them.

        Raises:
            DataError: `strict`, and there is one.
        """
        if count < 1:
            return
        numbers = ", ".join(map(str, first[:SHOWN])) + (", ..." if count > len(first) > 1 else "")
        where = f" ({unit}{'' if len(first) == 1 else 's'} {numbers})" if first else ""
        what = f"{reason}{f', such as {example!r}' if example else ''}{where}"
        text = f"{path}: {count:,} line{'' if count == 1 else 's'} left out: {what}"
        if self.strict:
            raise DataError(f"{text}; {remedy or 'mend the file'}, or run without --strict")
        self._found.setdefault(path, []).append((count, what, remedy))
        if (path, text) in self._noted:
            return
        self._noted.add((path, text))
        log.warning("%s", text)
        reasons = self.files.setdefault(path.name, {})
        reasons[reason] = reasons.get(reason, 0) + count

    def judge(self, path: Path, sound: int) -> None:
        """Refuse `path`, of which `sound` lines were taken, if too many others were left out since
        it was judged before: lines are compared with lines, and events of lists with events.

        Raises:
            DataError: they are more than `most` of its lines, or all.
        """
        found = self._found.pop(path, [])
        lost = sum(count for count, _, _ in found)
        total = lost + sound
        if not lost or (sound and lost <= self.most * total):
            return
        _, what, remedy = max(found, key=lambda part: part[0])
        what += f", and {len(found) - 1} other reasons" if found[1:] else ""
        remedy = remedy or "mend the file"
        if not sound:
            raise DataError(f"{path}: all of its {total:,} lines are broken: {what}; {remedy}")
        share = math.ceil(100 * lost / total) / 100
        raise DataError(
            f"{path}: {lost:,} of its {total:,} lines are broken, more than --max_broken "
            f"{self.most:g} admits: {what}; {remedy}, or go on without these lines: "
            f"--max_broken {share:g}"
        )

    def leave_empty(self, path: Path, what: str, count: int, example: str) -> None:
        """Note `count` cells of `path`, each a `what`, that could not be read as one."""
        if count:
            log.warning(
                "%s: %s %ss not read, left empty, such as %r", path, f"{count:,}", what, example
            )
            kinds = self.cells.setdefault(path.name, {})
            kinds[what] = kinds.get(what, 0) + count

    def total(self) -> int:
        """How many lines were left out."""
        return sum(sum(reasons.values()) for reasons in self.files.values())
