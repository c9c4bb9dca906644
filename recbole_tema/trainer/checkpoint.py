"""Checkpoints of plain values and tensors: written atomically, read with ``weights_only=True``.

RecBole's own checkpoints pickle the whole Config object; loading one runs code. Ours hold the
state dict and the config as plain values; one to resume from the optimizer and random states too.
"""

import hashlib
import json
import os
import pickle
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from recbole_tema.config.keys import class_keys, is_own, may_read
from recbole_tema.data.atomic import replace_file
from recbole_tema.data.cross_domain import ITEM_FIELDS, TAGS
from recbole_tema.data.schema import ATTRIBUTE_KEYS, FEATURE_FILES
from recbole_tema.data.split import GIVEN, MERGED
from recbole_tema.errors import CheckpointError

if TYPE_CHECKING:
    from recbole.model.abstract_recommender import AbstractRecommender

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

SPLIT = "split"  # part of a fingerprint: empty for the leave-one-out of each user
FORMAT = "recbole-tema checkpoint 2"
FORMER = "recbole-tema checkpoint 1"  # did not tell what its model reads of the dataset
# What every checkpoint has; one to resume from has the state of the training too.
PARTS = {
    **{"model": str, "dataset": str, "fingerprint": dict, "config": dict, "epoch": int},
    "state_dict": dict,
}
# torch.save writes a zip archive, and so begins every file that it finished or began.
ARCHIVE = b"PK"
# How the zip archive says that it is damaged.
UNREADABLE = (zipfile.BadZipFile, zlib.error, NotImplementedError)
# Keys that say where a run happens, not what it computes.
NOT_IN_RUN_NAME = {
    "checkpoint_dir", "data_path", "device", "gpu_id", "ip", "local_rank", "log_wandb", "nproc",
    "offset", "port", "quiet", "resume", "show_progress", "single_spec", "state", "use_gpu",
    "verbose", "wandb_project", "worker", "benchmark_filename", "recbole_cdr_path",
    "preset",  # its keys count
}  # fmt: skip


def plain(value: Any) -> Any:
    """``value`` as plain Python values; what has no plain form becomes its text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def plain_config(config: "TemaConfig") -> dict:
    """All keys and values of a config, plain."""
    return plain(dict(config.final_config_dict))


def run_name(config: "TemaConfig", fingerprint: Mapping[str, str] | None = None) -> str:
    """``MODEL-DATASET-seedSEED-HASH``: the hash covers every key that changes the result.

    Args:
        fingerprint: of what the model reads of its dataset (`dataset_fingerprint`). The
            features that it finds count, in place of the keys that follow from the files: a file
            that the model does not read makes no other run.
    """
    relevant = {
        key: value
        for key, value in plain_config(config).items()
        if key not in NOT_IN_RUN_NAME and not config.follows_from_files(key)
    }
    relevant["features"] = sorted(part for part, found in (fingerprint or {}).items() if found)
    text = json.dumps(relevant, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{config['model']}-{config['dataset']}-seed{config['seed']}-{digest}"


def dataset_fingerprint(
    dataset: "CrossDomainMixin", parts: Iterable[str] | None = None
) -> dict[str, str]:
    """Hashes of what a model knows of its dataset, part by part; empty where a part is not there.

    Args:
        parts: their names, as a checkpoint has them; None: ids, domains and what was asked of the
            dataset since it was prepared (``dataset.asked``), so what the model reads.
    """
    return {part: _hash_of(dataset, part) for part in parts or _parts_read(dataset)}


def _parts_read(dataset: "CrossDomainMixin") -> list[str]:
    found = {"users", "items", "domains", SPLIT, *dataset.asked}
    model_class = dataset.config.model_class
    named = {key for key in ATTRIBUTE_KEYS if may_read(model_class, key)}
    for key in named:
        value = dataset.config[key] or ()
        found |= {f"field {field}" for field in ([value] if isinstance(value, str) else value)}
    if is_own(model_class):  # it may read anything, by `dataset.item_feat` too
        found |= {ITEM_FIELDS, TAGS, *dataset._preloaded_weight}
    elif ITEM_FIELDS in found and named & class_keys(model_class):
        found.remove(ITEM_FIELDS)  # of all fields it reads those alone
    if ITEM_FIELDS in found:
        for kind, feat in (("field", dataset.item_feat), ("user_field", dataset.user_feat)):
            ids = (dataset.iid_field, dataset.uid_field)
            found |= {f"{kind} {field}" for field in (() if feat is None else feat)} - {
                f"{kind} {field}" for field in ids
            }
    if getattr(dataset, "kg_feat", None) is not None:
        found.add("knowledge graph")
    return sorted(found)


def _hash_of(dataset: "CrossDomainMixin", part: str) -> str:
    digest = hashlib.sha256()
    kind, _, field = part.partition(" ")
    ids = {"users": "uid_field", "items": "iid_field", "domains": "domain_field"}
    if part in ids:
        digest.update(
            "\n".join(map(str, dataset.field2id_token[getattr(dataset, ids[part])])).encode()
        )
        if part == "domains":
            digest.update(np.ascontiguousarray(dataset.item_domain).tobytes())
    elif part == SPLIT:
        rule = dataset.split.rule
        if rule.kind == MERGED:
            return ""
        digest.update(f"{rule.kind} {rule.cuts}".encode())
        digest.update(dataset.split.part.tobytes() if rule.kind == GIVEN else b"")
    elif part == TAGS:
        if dataset._tags is None:
            return ""
        for tensor in dataset._tags:
            digest.update(tensor.numpy().tobytes())
    elif part == ITEM_FIELDS:
        digest.update("\n".join(sorted(dataset.item_feat)).encode())
    elif part == "knowledge graph":
        for field in sorted(dataset.kg_feat):
            digest.update("\n".join(map(str, dataset.field2id_token[field])).encode())
            digest.update(np.asarray(dataset.kg_feat[field]).tobytes())
    elif kind in ("field", "user_field"):
        feat = dataset.item_feat if kind == "field" else dataset.user_feat
        if feat is None or field not in feat:
            return ""
        _add_field(digest, dataset, feat, field)
    elif part not in dataset._preloaded_weight:
        return ""
    else:
        digest.update(np.ascontiguousarray(dataset._preloaded_weight[part]).tobytes())
    return digest.hexdigest()


def _part_words(part: str, name: str) -> str:
    """A part of a fingerprint as a user knows it."""
    for suffix, (id_field, value_field, _) in FEATURE_FILES.items():
        if part == id_field:
            return f"{value_field} ({name}.{suffix})"
    words = {"users": "ids of users", "items": "ids of items", "domains": "domains of items"}
    kind, _, field = part.partition(" ")
    files = {"field": "item", "user_field": "user"}
    return words.get(part) or (f"'{field}' ({name}.{files[kind]})" if kind in files else part)


def _add_field(digest: "hashlib._Hash", dataset: "CrossDomainMixin", feat: Any, field: str) -> None:
    """Add a field's values, in the same bytes before and after RecBole pads its lists."""
    digest.update(field.encode())
    if field in dataset.field2id_token:
        digest.update("\n".join(map(str, dataset.field2id_token[field])).encode())
    values = feat[field]
    for row in values.numpy() if isinstance(values, torch.Tensor) else values:
        row = np.atleast_1d(np.asarray(row))
        if row.dtype.kind == "f":
            row = row.astype(np.float32)  # as RecBole's tensors have it
        digest.update(np.trim_zeros(row.astype(np.float64), "b").tobytes() + b"\n")


def events_fingerprint(dataset: "CrossDomainMixin") -> str:
    """A hash of every user's whole sequence: what a run trains and is evaluated on."""
    digest = hashlib.sha256()
    for array in (dataset.sequences.items, dataset.sequences.offsets):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def pack_other(value: Any) -> Any:
    """Values that RecBole's models keep beside their parameters, in a loadable form.

    Raises:
        CheckpointError: a value is neither a tensor, an array, a SciPy matrix nor plain.
    """
    from scipy import sparse

    if sparse.issparse(value):
        coo = value.tocoo()
        kind = value.format
        parts = [torch.from_numpy(np.ascontiguousarray(a)) for a in (coo.row, coo.col, coo.data)]
        return {"__kind__": "sparse", "format": kind, "shape": list(coo.shape), "parts": parts}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return {"__kind__": "array", "value": torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, dict):
        return {key: pack_other(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack_other(item) for item in value]
    if value is None or isinstance(value, torch.Tensor | bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    raise CheckpointError(
        f"a {type(value).__name__} cannot be kept in a checkpoint that is safe to load"
    )


def other_parameter(model: "AbstractRecommender") -> dict:
    """What a RecBole model keeps beside its state dict, packed; layers are in the state dict."""
    values = model.other_parameter()
    modules = {name for name, value in values.items() if isinstance(value, torch.nn.Module)}
    return {name: pack_other(value) for name, value in values.items() if name not in modules}


def unpack_other(value: Any, device: str | torch.device = "cpu") -> Any:
    """The inverse of `pack_other`, with the tensors on ``device``."""
    if isinstance(value, dict) and value.get("__kind__") == "array":
        return value["value"].cpu().numpy()
    if isinstance(value, dict) and value.get("__kind__") == "sparse":
        from scipy import sparse

        row, column, data = (part.cpu().numpy() for part in value["parts"])
        matrix = sparse.coo_matrix((data, (row, column)), shape=tuple(value["shape"]))
        return matrix.asformat(value["format"])
    if isinstance(value, dict):
        return {key: unpack_other(item, device) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack_other(item, device) for item in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _misfits(own: dict, given: dict) -> str:
    """How two state dicts differ in names and shapes, in a few words; empty where they fit."""
    shapes = {name: tuple(getattr(value, "shape", ())) for name, value in given.items()}
    kinds = {
        "the file lacks": [name for name in own if name not in given],
        "the model lacks": [name for name in given if name not in own],
        "other sizes": [
            f"{name} is {shapes[name]} in the file, {tuple(value.shape)} in the model"
            for name, value in own.items()
            if name in given and tuple(value.shape) != shapes[name]
        ],
    }
    return "; ".join(
        f"{kind}: {', '.join(names[:3])}" + (f" and {len(names) - 3} more" if names[3:] else "")
        for kind, names in kinds.items()
        if names
    )


def load_weights(
    model: "AbstractRecommender",
    state: dict,
    path: str | os.PathLike[str],
    device: str | torch.device = "cpu",
) -> None:
    """Put the weights of a checkpoint, and what the model keeps beside them, into ``model``.

    Raises:
        CheckpointError: the weights do not fit the model.
    """
    misfits = _misfits(model.state_dict(), state["state_dict"])
    if misfits:
        raise CheckpointError(f"{path} does not fit the model as configured: {misfits}")
    model.load_state_dict(state["state_dict"])
    model.load_other_parameter(unpack_other(state.get("other_parameter"), device))


def write_checkpoint(path: str | os.PathLike[str], state: dict) -> None:
    """Write ``state`` to ``path``; an interruption leaves the old file or the new one.

    Raises:
        CheckpointError: the file cannot be written, for example because the disk is full.
    """
    path, outer = Path(path), sys.exception()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            torch.save({"format": FORMAT, **state}, file)
    except (OSError, RuntimeError) as error:
        # torch's archive writer hides the system's reason and Ctrl-C behind an error of its own.
        hidden = None if error.__context__ is outer else error.__context__
        if hidden is not None and not isinstance(hidden, Exception):
            raise hidden from None
        cause = hidden if isinstance(hidden, OSError) else error
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {path} cannot be written ({reason}); make room or choose another "
            f"checkpoint_dir"
        ) from error


def read_checkpoint(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> dict:
    """Load a checkpoint of this package; no code in the file is run.

    Raises:
        CheckpointError: the file is missing, truncated, damaged, or another program's.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"checkpoint {path} not found")
    try:
        with open(path, "rb") as file:
            head = file.read(len(ARCHIVE))
    except OSError as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({error.strerror})") from error
    if head != ARCHIVE:
        what = "is empty" if not head else "is no file that torch.save wrote"
        raise CheckpointError(f"{path} {what}; give a .pth file of recbole-tema")
    damaged = f"{path} is truncated or damaged; restore it from a copy or train again"
    try:
        # PyTorch does not look at the checksums of the archive: flipped bits would load.
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise CheckpointError(damaged)
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a checkpoint of recbole-tema: it holds objects beyond tensors and "
            f"plain values, and loading those could run code; train the model with this package"
        ) from error
    except (*UNREADABLE, RuntimeError, EOFError, ValueError, OSError, KeyError) as error:
        raise CheckpointError(damaged) from error
    if isinstance(state, dict) and state.get("format") == FORMER:
        raise CheckpointError(
            f"{path} was written by an earlier version of recbole-tema ('{FORMER}', this one reads "
            f"'{FORMAT}'); train the model again"
        )
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of recbole-tema ('{FORMAT}')")
    for name, kind in PARTS.items():
        if not isinstance(state.get(name), kind):
            raise CheckpointError(f"{path} is damaged: its part '{name}' is missing or wrong")
    return state


def check_belongs(
    state: dict, path: str | os.PathLike[str], model: str, fingerprint: dict | None = None
) -> None:
    """Check that a checkpoint is of a model, and of the same data as far as its model reads them.

    Args:
        fingerprint: of the data that are there now (`dataset_fingerprint`).

    Raises:
        CheckpointError: it is another model's, or names what changed.
    """
    if state["model"] != model:
        raise CheckpointError(f"{path} holds a {state['model']}, not a {model}")
    changes = []
    for part, before in state["fingerprint"].items():
        now = before if fingerprint is None else fingerprint.get(part, before)
        if now != before and part == SPLIT:
            raise CheckpointError(
                f"{path} learnt from the training events of another split than eval_args.split "
                f"gives here, so it may have seen these targets; evaluate it by its own split, or "
                f"train it on this one"
            )
        if now != before:
            how = "changed" if now and before else "is new" if now else "is gone"
            changes.append(f"{_part_words(part, state['dataset'])} {how}")
    if changes:
        raise CheckpointError(
            f"{path} was trained on other files of dataset '{state['dataset']}', and its model "
            f"reads them: {', '.join(changes)}; use the files it was trained on or train again"
        )
