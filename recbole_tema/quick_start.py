"""From a model's name to its test metrics: ``run_recbole_tema`` and ``load_model``."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import torch
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import init_seed, set_color

from recbole_tema.config.files import check_layers, file_list, load_yaml, merge_layer, strongest
from recbole_tema.config.keys import class_keys
from recbole_tema.config.presets import KEY as PRESET
from recbole_tema.config.presets import model_of, over_presets
from recbole_tema.config.registry import (
    CDR_MODELS,
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    check_dataset,
    named_missing_package,
)
from recbole_tema.config.tema_config import TemaConfig
from recbole_tema.console import SCREEN, captured, headline, show_table, start_log
from recbole_tema.data.cross_domain import CrossDomainMixin
from recbole_tema.data.preparation import (
    PHASES,
    SOURCE_VALID,
    PreparedData,
    create_dataset,
    data_preparation,
)
from recbole_tema.data.schema import ATTRIBUTE_KEYS, check_required
from recbole_tema.device import find_device
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.evaluation import EvalPlan, format_table, slice_counts
from recbole_tema.evaluation.evaluator import evaluate_model, evaluation_data
from recbole_tema.library_errors import REFUSED, from_recbole, in_one_line, recbole_refusals
from recbole_tema.trainer.checkpoint import (
    check_belongs,
    dataset_fingerprint,
    events_fingerprint,
    load_weights,
    read_checkpoint,
)
from recbole_tema.trainer.distributed import from_main, is_main, rank, world_size
from recbole_tema.trainer.factory import build_trainer
from recbole_tema.trainer.memory import keep_freed_memory
from recbole_tema.trainer.seeding import seeded
from recbole_tema.trainer.trainer import TrainerLayer

AnyPath = str | os.PathLike[str]
Files = str | Sequence[str] | None
Keys = dict[str, Any] | None  # of a configuration
# Made from the machine or the model class: a checkpoint's value says nothing here.
MADE_HERE = {
    *("device", "gpu_id", "local_rank", "single_spec", "use_gpu", "data_path"),
    *("nproc", "world_size", "offset", "ip", "port"),
    *("MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type"),
}


@captured()
def run_recbole_tema(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Files = None,
    config_dict: Keys = None,
    cmd_config_dict: Keys = None,
    saved: bool = True,
    after_epoch: Callable[[int, float], object] | None = None,
) -> dict[str, Any]:
    """Train and evaluate one model on one dataset.

    Args:
        model: ``TEMA``, ``LLM4CDSR`` or the name of a RecBole model; None: the key ``model`` of
            the files and dicts below, else the model that a preset of theirs is for, else ``TEMA``.
        dataset: a built-in dataset, or the name of a folder of atomic files in ``data_path``;
            None: the key ``dataset`` of the files and dicts below, else ``ml-100k-genre``.
        config_file_list: YAML files.
        config_dict: keys that win over the files.
        cmd_config_dict: keys that win over both (the command line's).
        saved: keep checkpoints, evaluate the best one; False evaluates the last epoch's model.
        after_epoch: called with (epoch from 0, validation score) after each validation.

    Returns:
        dict with ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``,
        ``test_result`` (as RecBole's ``run_recbole``), ``table`` (text), ``model_file`` and
        ``epoch_seconds`` (training time of each epoch of this process) and ``device`` (the type:
        cpu, cuda).

    Raises:
        TemaError: a name, key, value or file is wrong; the message says which.
    """
    check_layers(config_dict=config_dict, cmd_config_dict=cmd_config_dict)
    if not isinstance(saved, bool):
        raise ConfigError(f"saved is {saved!r}; give True or False")
    if after_epoch is not None and not callable(after_epoch):
        raise ConfigError(f"after_epoch is {after_epoch!r}; give a function of (epoch, score)")
    layers = [*map(load_yaml, file_list(config_file_list)), config_dict, cmd_config_dict]
    named = {key: strongest(key, *layers) for key in ("model", "dataset", PRESET)}
    choices = (model, named["model"], model_of(named), DEFAULT_MODEL)
    model = next(choice for choice in choices if choice is not None)
    if dataset is None:
        dataset = DEFAULT_DATASET if named["dataset"] is None else named["dataset"]
    config = TemaConfig(model, dataset, config_file_list, config_dict, cmd_config_dict)
    check_dataset(config["dataset"], Path(config["data_path"]).parent)
    if config["threads"]:
        torch.set_num_threads(int(config["threads"]))
    keep_freed_memory()
    init_seed(config["seed"], config["reproducibility"])
    start_log(config)
    logger = getLogger()
    logger.info(config)
    _ensure_dataset(config)
    check_required(config["data_path"], config["dataset"], config.final_config_dict)

    data = _load_dataset(config)
    logger.info(data)
    prepared = _prepare(config, data)
    eval_data = evaluation_data(config, data, prepared, validates=True)

    init_seed(config["seed"], config["reproducibility"])
    with named_missing_package(config["model"]):
        network = _new_model(config, prepared.train_dataset)
        logger.info(network)
        if rank():  # each process drops out and draws for itself, in the model of the first
            init_seed(config["seed"] + rank(), config["reproducibility"])
        trainer = build_trainer(config, network, data)
        config.warn_of_unread_keys()
        if SOURCE_VALID in eval_data:
            trainer.source_valid = eval_data[SOURCE_VALID]
        SCREEN.info(headline(config, data, world_size()))
        if saved:
            _resume(config, trainer)
        show = config["show_progress"] and not config["quiet"]
        score, valid_result = trainer.fit(
            prepared.train_data,
            eval_data["valid"],
            saved=saved,
            show_progress=show,
            callback_fn=after_epoch,
        )
    test_result = trainer.evaluate(eval_data["test"], load_best_model=saved, show_progress=show)
    if saved:
        trainer.end_run()

    counts = slice_counts(eval_data["test"].plan, eval_data["test"].groups)
    table = format_table(valid_result, test_result, counts, notes=eval_data["test"].notes)
    SCREEN.info(set_color("best valid ", "yellow") + f": {dict(valid_result or {})}")
    SCREEN.info(set_color("test result", "yellow") + f": {dict(test_result or {})}")
    show_table(table, config, is_main())
    return {
        "best_valid_score": score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": valid_result,
        "test_result": test_result,
        "table": table,
        "model_file": trainer.saved_model_file if saved else None,
        "epoch_seconds": trainer.epoch_seconds,
        "device": torch.device(config["device"]).type,
    }


def load_model(
    checkpoint: AnyPath, data_path: AnyPath | None = None, device: str | torch.device | None = None
) -> tuple[TemaConfig, CrossDomainMixin, AbstractRecommender]:
    """The config, dataset and trained model of a checkpoint.

    Args:
        checkpoint: path of a ``.pth`` file that a run wrote.
        data_path: folder that holds the dataset's folder, if it is no longer where it was.
        device: torch device; the GPU if there is one by default.

    Returns:
        (config, dataset, model), the model in evaluation mode; ``model.dataset`` is the dataset,
        so that ``recbole_tema.recommend`` can read raw ids.

    Raises:
        CheckpointError: the file is damaged, not this package's, or of other data.
        ConfigError: there is no such device.
        DataError: the dataset is not where it was, or one of its files is damaged.
    """
    device = None if device is None else find_device(device)
    config, state = _saved_config(checkpoint, data_path)
    if device is not None:
        config["device"] = device
    dataset = _saved_dataset(config, state, checkpoint)
    model = _saved_model(config, dataset.build()[0], state, checkpoint)
    model.dataset = dataset
    return config, dataset, model


def evaluate_checkpoint(
    checkpoint: AnyPath,
    config_dict: Keys = None,
    phases: str | Iterable[str] = ("valid", "test"),
    data_path: AnyPath | None = None,
) -> dict[str, dict[str, float]]:
    """Evaluate a trained model again, for example under another protocol.

    Args:
        checkpoint: path of a ``.pth`` file that a run wrote.
        config_dict: keys of the evaluation that differ from the training run, for example
            ``{"eval_args": {"mode": "uni100"}}`` or ``{"eval_groups": ["popularity"]}``.
        phases: which of ``valid`` and ``test``.
        data_path: folder that holds the dataset's folder, if it is no longer where it was.

    Returns:
        dict from phase to the metrics, as ``run_recbole_tema`` gives them; no metrics for a phase
        without targets.

    Raises:
        CheckpointError: the file is damaged, not this package's, or of other data.
        ConfigError: a phase or a key of ``config_dict`` is unknown, or a value out of range.
        DataError: the dataset is not where it was, or one of its files is damaged.
    """
    return {
        phase: metrics
        for phase, (metrics, *_) in rank_checkpoint(
            checkpoint, config_dict, phases, data_path
        ).items()
    }


def rank_checkpoint(
    checkpoint: AnyPath,
    config_dict: Keys = None,
    phases: str | Iterable[str] = ("valid", "test"),
    data_path: AnyPath | None = None,
) -> dict[str, tuple[dict[str, float], np.ndarray, EvalPlan, CrossDomainMixin]]:
    """The place of every target by a trained model.

    Args, Raises: as `evaluate_checkpoint`.

    Returns:
        dict from phase to (metrics, ranks ``(n_targets,)`` int64 with 0 the first place, the
        phase's `EvalPlan`, the dataset).
    """
    given = [phases] if isinstance(phases, str) else phases
    if not isinstance(given, list | tuple | set) or not all(p in PHASES for p in given):
        raise ConfigError(f"phases is {phases!r}; allowed: a list of {', '.join(PHASES)}")
    phases = list(given)
    check_layers(config_dict=config_dict)
    config, state = _saved_config(checkpoint, data_path, config_dict)
    data = _saved_dataset(config, state, checkpoint)
    if state.get("events", "") != events_fingerprint(data):
        getLogger().warning(
            f"dataset '{config['dataset']}' has other interactions than those that {checkpoint} "
            f"was trained on: the metrics are of what is there now"
        )
    prepared = _prepare(config, data)
    model = _saved_model(config, prepared.train_dataset, state, checkpoint)
    eval_data = evaluation_data(config, data, prepared)
    return {
        phase: (
            *evaluate_model(model, eval_data[phase], config, data),
            eval_data[phase].plan,
            data,
        )
        for phase in phases
    }


def _saved_config(
    checkpoint: AnyPath, data_path: AnyPath | None = None, config_dict: Keys = None
) -> tuple[TemaConfig, dict[str, Any]]:
    """(config, checkpoint): the config that a model was trained with, on this machine's device."""
    for name, path in (("checkpoint", checkpoint), ("data_path", data_path)):
        if not isinstance(path, str | os.PathLike) and (path is not None or name == "checkpoint"):
            raise ConfigError(f"{name} is {path!r}; give a path")
    state = read_checkpoint(checkpoint)
    # What the user gave then is given again, so that it still wins over what the files imply.
    given = {k: v for k, v in state.get("given", {}).items() if k not in MADE_HERE}
    # So does the field that the model read then: tags that came since are not its own.
    given |= {key: state["config"][key] for key in ATTRIBUTE_KEYS if state["config"].get(key)}
    given.pop(PRESET, None)  # its keys are among those given, whatever its file says now
    # A preset of the evaluation lies over the training's keys, as all that is given with it.
    config_dict, _ = over_presets(config_dict or {}, {}, [state["model"]], state["dataset"])
    layer = merge_layer(given, {k: v for k, v in config_dict.items() if k != PRESET})
    config = TemaConfig(state["model"], state["dataset"], config_dict=layer)
    if state["model"] in CDR_MODELS:
        for key in ("target_domain", "overlap_ratio"):  # its ids of users and items follow them
            if config[key] != state["config"][key]:
                raise ConfigError(
                    f"{key} is {config[key]!r}, but {checkpoint} was trained with "
                    f"{state['config'][key]!r}; train the model for it"
                )
    changed = set(config_dict)
    if "eval_args" in changed:
        changed |= {"valid_neg_sample_args", "test_neg_sample_args"}
    for key, value in state["config"].items():
        if key not in MADE_HERE | changed and not config.follows_from_files(key):
            config[key] = value
    folder = Path(data_path).expanduser() / state["dataset"] if data_path else None
    config["data_path"] = str(folder or state["config"]["data_path"])
    return config, state


def _saved_dataset(
    config: TemaConfig, state: dict[str, Any], checkpoint: AnyPath
) -> CrossDomainMixin:
    """The dataset of a checkpoint, which must still be what the model was made for."""
    folder = Path(config["data_path"])
    if not folder.is_dir():
        raise DataError(
            f"{folder} not found: the dataset of {checkpoint} has moved or is gone; give "
            f"data_path, the folder that holds the folder '{state['dataset']}'"
        )
    dataset = _load_dataset(config)
    now = dataset_fingerprint(dataset, state["fingerprint"])
    check_belongs(state, checkpoint, state["model"], now)
    if config["exclude_history"] == state["config"].get("exclude_history"):
        # As the model was evaluated, also where `auto` comes to something else on later events.
        dataset.exclude_history = state.get("exclude_history", dataset.exclude_history)
    return dataset


def _load_dataset(config: TemaConfig) -> CrossDomainMixin:
    """The dataset of ``config``; what RecBole refuses while it loads becomes one line.

    Raises:
        DataError: a file is missing or malformed. ConfigError: a key does not fit the dataset.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    suffixes = config["additional_feat_suffix"] or []
    for suffix in [suffixes] if isinstance(suffixes, str) else suffixes:
        path = folder / f"{name}.{suffix}"
        if not path.is_file():
            raise DataError(f"{path} not found, which additional_feat_suffix names")
    refused = f"RecBole refuses dataset '{name}' with this configuration"
    with recbole_refusals(refused), warnings.catch_warnings():
        # pandas 2 on what RecBole writes; pandas 3, which it is about, is not admitted.
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
        dataset = create_dataset(config, config.model_class)
    length = config["ITEM_LIST_LENGTH_FIELD"]
    if any(length in columns for columns in (config["load_col"] or {}).values()):
        raise ConfigError(
            f"ITEM_LIST_LENGTH_FIELD is '{length}', which is a column of '{name}' already; give "
            f"another name"
        )
    return dataset


def _prepare(config: TemaConfig, dataset: CrossDomainMixin) -> PreparedData:
    with recbole_refusals(f"RecBole refuses to split dataset '{config['dataset']}'"):
        return data_preparation(config, dataset, config.model_class)


def _new_model(config: TemaConfig, train_dataset: CrossDomainMixin) -> AbstractRecommender:
    try:
        return config.model_class(config, train_dataset).to(config["device"])
    except REFUSED as error:
        # So RecBole's models refuse keys that do not fit together, or a value that they miss in a
        # table of theirs; a package that is not installed is named by the caller.
        known = isinstance(error, ValueError | NotImplementedError) or from_recbole(error)
        if not known or isinstance(error, ModuleNotFoundError):
            raise
        own = class_keys(config.model_class)
        given = ", ".join(sorted(key for key in config.sources if key in own))
        where = f" (keys of this model that were given: {given})" if given else ""
        raise ConfigError(f"model '{config['model']}': {in_one_line(error)}{where}") from error


def _saved_model(
    config: TemaConfig, train_dataset: CrossDomainMixin, state: dict[str, Any], checkpoint: AnyPath
) -> AbstractRecommender:
    with seeded(config):  # a few models draw neighbours or clusters when they are made
        model = _new_model(config, train_dataset)
    load_weights(model, state, checkpoint, config["device"])
    return model.eval()


def _ensure_dataset(config: TemaConfig) -> None:
    """Build a built-in dataset that is missing; the one place that calls ``dataset_tools``."""
    from recbole_tema.builtin import BUILTIN, ensure_builtin

    folder = Path(config["data_path"])
    if config["dataset"] in BUILTIN:
        from_main(lambda: str(ensure_builtin(config["dataset"], folder.parent)))


def _resume(config: TemaConfig, trainer: TrainerLayer) -> None:
    if config["resume"]:
        if not trainer.resume():
            SCREEN.info("resume: no run with this very config so far, starting a new one")
    elif is_main() and trainer.last_file.is_file():
        SCREEN.info(
            f"{trainer.last_file} is an unfinished run of this very config; starting anew "
            f"(add --resume=True to continue it)"
        )
