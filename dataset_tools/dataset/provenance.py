"""Which generated fields a dataset has, what made them and of what: whether there is work to do.

The card's note of a field that a command made ends with `, inputs HASH`, the hash of the texts it
was made of. So a command makes anew by itself what the dataset outgrew, and never replaces what
somebody chose: other models, prompts or options need `--force`.
"""

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping
from glob import escape
from pathlib import Path

from dataset_tools.dataset.dataset import Dataset
from recbole_tema.config.registry import READERS

log = logging.getLogger(__name__)

CHECKPOINTS = Path("saved")  # RecBole's `checkpoint_dir`, in the current folder
BY_MODEL = "language model "  # begins the note of every field that one made
KINDS = {  # field that a command makes -> what it holds, in words
    "tags": "tags",
    "augmented_text": "augmented texts",
    "llm_emb": "item vectors",
    "profile_emb": "profiles",
    "clip_text": "text vectors",
    "clip_image": "image vectors",
}
# Field of a language model -> key of the card with the numbers of its run.
RUNS = {"tags": "tagging", "augmented_text": "augmenting", "profile_emb": "profiling"}
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


def trial_of(limit: int | None, total: int) -> int | None:
    """`--limit` where it leaves some of the `total` items or users out; None where it does not."""
    return limit if limit is not None and limit < total else None


def total_of(dataset: Dataset, field: str) -> int:
    """How many items, or for profiles users, `field` can be of."""
    return dataset.events["user_id"].nunique() if field == "profile_emb" else len(dataset.items)


def trial_there(dataset: Dataset, field: str) -> int | None:
    """How many first items or users what is there of `field` is of; None where it is of all."""
    stated = dataset.card.get(RUNS.get(field, ""))
    options = stated.get("options") if isinstance(stated, dict) else None
    limit = options.get("limit") if isinstance(options, dict) else None
    return trial_of(limit if isinstance(limit, int) else None, total_of(dataset, field))


def by_model(dataset: Dataset, field: str) -> bool:
    """Whether `field` is there, made by a language model, of all items or users."""
    made = dataset.generated(field).startswith(BY_MODEL) and dataset.has(field)
    return made and trial_there(dataset, field) is None


def counted(n: int, total: int, what: str, others: Mapping[str, int]) -> str:
    """`n` of `total` in words, and what the others are; the numbers of `others` add up to them.

    >>> counted(10, 341, "items have tags", {"beyond --limit": 331, "without a title": 0})
    '10 of 341 items have tags; the others: 331 beyond --limit'
    """
    parts = [f"{count:,} {reason}" for reason, count in others.items() if count]
    return f"{n:,} of {total:,} {what}" + (f"; the others: {', '.join(parts)}" if parts else "")


def reason_to_skip(
    dataset: Dataset, field: str, maker: str, inputs: str, limit: int | None = None
) -> str | None:
    """Why a command without `--force` leaves a field as it is; None where it has work to do.

    Args:
        dataset: With its card.
        field: Of KINDS.
        maker: What the field's note in the card begins with where the present command made it.
        inputs: Digest of the texts that it would be made of.
        limit: Of how many the present command would make it: a trial never takes the place of a
            whole field, nor of a larger trial.
    """
    note, what = dataset.generated(field), KINDS[field]
    trial, limit = trial_there(dataset, field), trial_of(limit, total_of(dataset, field))
    if not dataset.has(field):
        return None
    if trial is not None:
        if limit is None or limit >= trial:
            return None
        return (
            f"{dataset.name} has {what} of a larger trial, --limit {trial}, than --limit {limit}; "
            "--force replaces them"
        )
    if not note:
        return (
            f"{dataset.name} has {what} of its own: the card names no maker; --force replaces them"
        )
    found = _INPUTS.search(note)
    if not found and not note.startswith(BY_MODEL):  # a stand-in of the dataset's builder
        if limit is None:
            return None
        return f"{dataset.name} has {what} ({note}), which --limit leaves alone without --force"
    changed = found is not None and found[1] != inputs
    if changed and note.startswith(maker) and limit is None:
        return None
    outgrown = ", made of other texts than there are now" if changed else ""
    return f"{dataset.name} has {what}: {note}{outgrown}; --force makes them anew"


def say_refused(dataset: Dataset, *fields: str) -> None:
    """Say, before the work, whose checkpoints `fields` will orphan: a model knows what it read."""
    done = [
        f"{', '.join(names)} {'will be replaced' if old else 'will be added'}"
        for old in (True, False)
        if (names := [field for field in fields if dataset.has(field) == old])
    ]
    readers = sorted({model for field in fields for model in READERS.get(field, ())})
    log.warning(
        "%s: %s; checkpoints of %smodels whose selected_features name one of these, that were "
        "trained before will be refused%s",
        *(dataset.folder, " and ".join(done)),
        f"{', '.join(readers)}, and of " if readers else "",
        checkpoints(dataset.name, readers),
    )


def say_replaced(folder: Path, name: str) -> None:
    """The same of a whole dataset, if there is one in `folder`."""
    if (folder / f"{name}.inter").is_file():
        log.warning(
            "%s will be replaced; checkpoints of models that were trained on it before will be "
            "refused where its users, items, domains or a field that they read become others%s",
            *(folder, checkpoints(name)),
        )


def checkpoints(name: str, models: Iterable[str] = ("*",)) -> str:
    """Those of dataset `name` in the current folder's `saved`, as the end of a sentence."""
    found = sorted(
        str(path) for model in models for path in CHECKPOINTS.glob(f"{model}-{escape(name)}-seed*")
    )
    return f": {', '.join(path for path in found if path.endswith('.pth'))}" if found else ""
