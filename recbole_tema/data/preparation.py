"""From a config to a dataset, its loaders and the two evaluation plans."""

from typing import NamedTuple

from recbole.data.utils import create_samplers, get_dataloader
from recbole.sampler import KGSampler
from recbole.utils import ModelType

from recbole_tema.data.baseline import baseline_class
from recbole_tema.data.baseline_loader import BaselineEvalLoader
from recbole_tema.data.dataset import CrossDomainSequentialDataset
from recbole_tema.data.loader import SequenceEvalLoader, SequenceTrainLoader
from recbole_tema.data.schema import detect
from recbole_tema.data.sequences import split_targets
from recbole_tema.evaluation.plan import EvalPlan

PHASES = ("valid", "test")


class PreparedData(NamedTuple):
    """Loaders and plans of one dataset; ``eval_data`` and ``plans`` are dicts by phase."""

    train_data: object
    eval_data: dict
    plans: dict


def is_sequence_level(model_class) -> bool:
    """Whether a model trains on whole sequences (ours) rather than on RecBole's rows."""
    return bool(getattr(model_class, "sequence_level", False))


def create_dataset(config, model_class):
    """Load the dataset of ``config`` in the form that ``model_class`` trains on.

    Raises:
        DataError: a file is missing or malformed. ConfigError: the model cannot be run here.
    """
    config.set_data_defaults(detect(config["data_path"], config["dataset"], config))
    if is_sequence_level(model_class):
        return CrossDomainSequentialDataset(config)
    return baseline_class(config["model"], config["MODEL_TYPE"])(config)


def data_preparation(config, dataset, model_class) -> PreparedData:
    """Split the dataset and build the training loader, the evaluation loaders and plans."""
    built = dataset.build()
    if is_sequence_level(model_class):
        train_data = SequenceTrainLoader(config, built[0])
    else:
        train_data = _recbole_train_loader(config, dataset, built)
    eval_data, plans = {}, {}
    for phase, part in zip(PHASES, built[1:], strict=True):
        plans[phase] = plan = eval_plan(config, dataset, phase)
        if is_sequence_level(model_class):
            eval_data[phase] = SequenceEvalLoader(config, part, phase)
        else:
            eval_data[phase] = BaselineEvalLoader(config, part, plan.users, plan.targets)
    return PreparedData(train_data, eval_data, plans)


def eval_plan(config, dataset, phase) -> EvalPlan:
    """The targets and candidates of a phase, the same for every model on this dataset."""
    sequences = dataset.sequences
    users, positions = split_targets(sequences, phase)
    return EvalPlan(
        users,
        sequences.items[sequences.offsets[users] + positions],
        dataset.item_domain,
        dataset.domain_names,
        candidates=config["candidates"],
        mode=config["eval_args"]["mode"][phase],
        neg_seed=config["eval_neg_seed"],
        sequences=(sequences.items, sequences.offsets),
        exclude_history=config["exclude_history"],
        phase=phase,
    )


def _recbole_train_loader(config, dataset, built):
    sampler, _, _ = create_samplers(config, dataset, built)
    loader = get_dataloader(config, "train")
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        args = config["train_neg_sample_args"]
        kg_sampler = KGSampler(dataset, args["distribution"], args["alpha"])
        return loader(config, built[0], sampler, kg_sampler, shuffle=True)
    return loader(config, built[0], sampler, shuffle=config["shuffle"])
