"""Which generated fields a dataset has, what made them and of what: whether there is work to do.

The card's note of a field that a command made ends with `, inputs HASH`, the hash of the texts it
was made of. So a command makes anew by itself what the dataset outgrew, and never replaces what
somebody chose: other models, prompts or options need `--force`.
"""

import hashlib
import re
from collections.abc import Iterable

from dataset_tools.update import Dataset

BY_MODEL = "language model "  # begins the note of every field that one made
_INPUTS = re.compile(r", inputs ([0-9a-f]+)\Z")


def digest(*parts: Iterable[str] | bytes) -> str:
    """First digits of the SHA-256 of sequences of texts, each kept apart, and of bytes."""
    found = hashlib.sha256()
    for part in parts:
        for piece in [part] if isinstance(part, bytes) else part:
            data = piece if isinstance(piece, bytes) else piece.encode("utf-8", "surrogatepass")
            found.update(len(data).to_bytes(8, "little") + data)
        found.update(b"\xff" * 8)
    return found.hexdigest()[:12]


def note_of(made_by: str, inputs: str) -> str:
    """The card's note of a field made by `made_by` of texts with the digest `inputs`."""
    return f"{made_by}, inputs {inputs}"


def was_limited(dataset: Dataset, run: str) -> bool:
    """Whether the card's note on a `run` says that it was a trial of the first items or users."""
    stated = dataset.card.get(run)
    options = stated.get("options") if isinstance(stated, dict) else None
    return isinstance(options, dict) and options.get("limit") is not None


def reason_to_skip(
    dataset: Dataset,
    field: str,
    what: str,
    *,
    there: bool,
    maker: str,
    inputs: str,
    trial: bool = False,
    limit: int | None = None,
) -> str | None:
    """Why a command without `--force` leaves a field as it is; None where it has work to do.

    Args:
        dataset: With its card.
        field: Name of the field in the card's notes.
        what: What the field holds, in words.
        there: Whether the dataset has the field's files or columns.
        maker: What the field's note begins with where the present command made it.
        inputs: Digest of the texts that it would be made of.
        trial: Whether what is there is a trial of `--limit`.
        limit: The present command's `--limit`: a trial never takes the place of a whole field.
    """
    note = dataset.generated(field)
    if not there or trial:
        return None
    if not note:
        return (
            f"{dataset.name} has {what} of its own: the card names no maker; --force replaces them"
        )
    found = _INPUTS.search(note)
    if not found and not note.startswith(BY_MODEL):  # a stand-in of the dataset's builder
        if limit is None:
            return None
        return f"{dataset.name} has {what} ({note}), which --limit leaves alone without --force"
    changed = bool(found) and found[1] != inputs
    if changed and note.startswith(maker) and limit is None:
        return None
    outgrown = ", made of other texts than there are now" if changed else ""
    return f"{dataset.name} has {what}: {note}{outgrown}; --force makes them anew"
