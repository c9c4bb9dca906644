"""From a model's name to its test metrics: ``run_recbole_tema`` and ``load_model``."""

import logging
from logging import getLogger
from pathlib import Path

import torch
from recbole.utils import init_logger, init_seed, set_color

from recbole_tema.checkpoint import (
    check_belongs,
    dataset_fingerprint,
    read_checkpoint,
    unpack_other,
)
from recbole_tema.config import TemaConfig
from recbole_tema.data import create_dataset, data_preparation
from recbole_tema.data.sequences import domain_counts
from recbole_tema.evaluation import format_table, slice_counts, target_groups
from recbole_tema.errors import CheckpointError
from recbole_tema.trainer import EvalData, build_trainer

DEFAULT_MODEL = "TEMA"
DEFAULT_DATASET = "ml-100k-genre"


def run_recbole_tema(
    model=DEFAULT_MODEL,
    dataset=DEFAULT_DATASET,
    config_file_list=None,
    config_dict=None,
    cmd_config_dict=None,
    saved=True,
):
    """Train and evaluate one model on one dataset.

    Args:
        model: ``TEMA``, ``LLM4CDSR`` or the name of a RecBole model.
        dataset: a built-in dataset, or the name of a folder of atomic files in ``data_path``.
        config_file_list: YAML files. config_dict: keys that win over the files.
        cmd_config_dict: keys that win over both (the command line's).
        saved: keep checkpoints, evaluate the best one; False evaluates the last epoch's model.

    Returns:
        dict with ``best_valid_score``, ``valid_score_bigger``, ``best_valid_result``,
        ``test_result`` (as RecBole's ``run_recbole``), ``table`` (text), ``model_file`` and
        ``epoch_seconds`` (training time of each epoch of this process).

    Raises:
        TemaError: a name, key, value or file is wrong; the message says which.
    """
    config = TemaConfig(model, dataset, config_file_list, config_dict, cmd_config_dict)
    if config["threads"]:
        torch.set_num_threads(int(config["threads"]))
    init_seed(config["seed"], config["reproducibility"])
    _start_log(config)
    logger = getLogger()
    logger.info(config)
    _ensure_dataset(config)

    model_class = config.model_class
    data = create_dataset(config, model_class)
    logger.info(data)
    prepared = data_preparation(config, data, model_class)
    groups = _groups(config, data, prepared.plans)

    init_seed(config["seed"] + config["local_rank"], config["reproducibility"])
    network = model_class(config, prepared.train_data.dataset).to(config["device"])
    logger.info(network)
    trainer = build_trainer(config, network, data)
    _resume(config, trainer)
    eval_data = {
        phase: EvalData(prepared.eval_data[phase], plan, groups[phase])
        for phase, plan in prepared.plans.items()
    }
    show = config["show_progress"]
    score, valid_result = trainer.fit(
        prepared.train_data, eval_data["valid"], saved=saved, show_progress=show
    )
    test_result = trainer.evaluate(eval_data["test"], load_best_model=saved, show_progress=show)
    trainer.last_file.unlink(missing_ok=True)

    counts = slice_counts(prepared.plans["test"], groups["test"])
    table = format_table(valid_result, test_result, counts)
    logger.info(set_color("best valid ", "yellow") + f": {dict(valid_result or {})}")
    logger.info(set_color("test result", "yellow") + f": {dict(test_result or {})}")
    logger.info("\n" + table)
    return {
        "best_valid_score": score,
        "valid_score_bigger": config["valid_metric_bigger"],
        "best_valid_result": valid_result,
        "test_result": test_result,
        "table": table,
        "model_file": trainer.saved_model_file if saved else None,
        "epoch_seconds": trainer.epoch_seconds,
    }


def load_model(checkpoint, data_path=None, device=None):
    """The config, dataset and trained model of a checkpoint.

    Args:
        checkpoint: path of a ``.pth`` file that a run wrote.
        data_path: folder that holds the dataset's folder, if it is no longer where it was.
        device: torch device; the GPU if there is one by default.

    Returns:
        (config, dataset, model), the model in evaluation mode; ``model.dataset`` is the dataset,
        so that :func:`recbole_tema.recommend` can read raw ids.

    Raises:
        CheckpointError: the file is damaged, not this package's, or of other data.
    """
    config, state = _saved_config(checkpoint, data_path)
    if device is not None:
        config["device"] = torch.device(device)
    dataset = create_dataset(config, config.model_class)
    check_belongs(state, checkpoint, state["model"], dataset_fingerprint(dataset))
    model = config.model_class(config, dataset.build()[0])
    _load_weights(model, state, checkpoint)
    model.dataset = dataset
    return config, dataset, model.to(config["device"]).eval()


def evaluate_checkpoint(checkpoint, config_dict=None, phases=("valid", "test"), data_path=None):
    """Evaluate a trained model again, for example under another protocol.

    Args:
        checkpoint: path of a ``.pth`` file that a run wrote.
        config_dict: keys of the evaluation that differ from the training run, for example
            ``{"eval_args": {"mode": "uni100"}}`` or ``{"eval_groups": ["popularity"]}``.
        phases: which of ``valid`` and ``test``.
        data_path: folder that holds the dataset's folder, if it is no longer where it was.

    Returns:
        dict from phase to the metrics, as ``run_recbole_tema`` gives them.
    """
    config, state = _saved_config(checkpoint, data_path, config_dict)
    data = create_dataset(config, config.model_class)
    prepared = data_preparation(config, data, config.model_class)
    groups = _groups(config, data, prepared.plans)
    network = config.model_class(config, prepared.train_data.dataset).to(config["device"])
    trainer = build_trainer(config, network, data)
    return {
        phase: trainer.evaluate(
            EvalData(prepared.eval_data[phase], prepared.plans[phase], groups[phase]),
            model_file=checkpoint,
        )
        for phase in phases
    }


def _saved_config(checkpoint, data_path=None, config_dict=None):
    """(config, checkpoint): the config that a model was trained with, on this machine's device."""
    state = read_checkpoint(checkpoint)
    config = TemaConfig(state["model"], state["dataset"], config_dict=config_dict)
    # These are made from the machine or the model class, and saved as text only.
    made_here = {"device", "gpu_id", "local_rank", "single_spec", "use_gpu", "data_path"}
    made_here |= {"MODEL_TYPE", "MODEL_INPUT_TYPE", "eval_type"}
    changed = set(config_dict or {})
    if "eval_args" in changed:
        changed |= {"valid_neg_sample_args", "test_neg_sample_args"}
    for key, value in state["config"].items():
        if key not in made_here | changed:
            config[key] = value
    folder = Path(data_path) / state["dataset"] if data_path else state["config"]["data_path"]
    config["data_path"] = str(folder)
    return config, state


def _load_weights(model, state, path):
    try:
        model.load_state_dict(state["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{path} does not fit its own config: {str(error).splitlines()[-1].strip()}"
        ) from error
    model.load_other_parameter(unpack_other(state.get("other_parameter")))


def _start_log(config):
    # RecBole adds its handlers to the root logger on every call: a second run would log twice.
    root = logging.getLogger()
    for handler in list(root.handlers):
        if getattr(handler, "recbole_tema", False):
            root.removeHandler(handler)
            handler.close()
    before = set(root.handlers)
    init_logger(config)
    for handler in root.handlers:
        if handler not in before:
            handler.recbole_tema = True


def _ensure_dataset(config):
    """Build a built-in dataset that is missing; the one place that calls ``dataset_tools``."""
    from dataset_tools.builtin import BUILTIN, ensure_builtin

    folder = Path(config["data_path"])
    if config["dataset"] in BUILTIN:
        ensure_builtin(config["dataset"], folder.parent)


def _groups(config, dataset, plans):
    if not config["eval_groups"]:
        return dict.fromkeys(plans)
    spans = domain_counts(dataset.train_sequences, dataset.item_domain, len(dataset.domain_names))
    lengths = dataset.sequences.lengths
    groups = {}
    for phase, plan in plans.items():
        before = 1 if phase == "test" else 2
        groups[phase] = target_groups(
            plan,
            config["eval_groups"],
            train_popularity=dataset.training_popularity(),
            history_length=lengths[plan.users] - before,
            user_overlap=(spans > 0).sum(axis=1)[plan.users] > 1,
        )
    return groups


def _resume(config, trainer):
    if not trainer.last_file.is_file():
        if config["resume"]:
            getLogger().info("resume: no unfinished run with this config, starting a new one")
        return
    if config["resume"]:
        trainer.resume_checkpoint(trainer.last_file)
    else:
        getLogger().info(
            f"{trainer.last_file} is an unfinished run of this very config; starting anew "
            f"(add --resume=True to continue it)"
        )
