"""From a config to a dataset, its loaders and the two evaluation plans."""

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
from recbole.data.dataset import KnowledgeBasedDataset
from recbole.data.utils import create_samplers, get_dataloader
from recbole.sampler import KGSampler
from recbole.utils import FeatureSource, ModelType
from torch.utils.data import DistributedSampler

from recbole_tema.config.keys import class_keys, may_read
from recbole_tema.console import SCREEN
from recbole_tema.data.atomic import read_header
from recbole_tema.data.baseline import baseline_class
from recbole_tema.data.baseline_loader import BaselineEvalLoader
from recbole_tema.data.dataset import CrossDomainSequentialDataset
from recbole_tema.data.loader import SequenceEvalLoader, SequenceTrainLoader
from recbole_tema.data.negatives import within
from recbole_tema.data.schema import ATTRIBUTE_KEYS, FEATURE_FILES, detect
from recbole_tema.data.split import GIVEN, SPLIT_FIELD, read_rule
from recbole_tema.errors import ConfigError, DataError
from recbole_tema.evaluation.plan import EvalPlan

if TYPE_CHECKING:
    from recbole.data.dataloader import AbstractDataLoader

    from recbole_tema.config.tema_config import TemaConfig
    from recbole_tema.data.cross_domain import CrossDomainMixin

PHASES = ("valid", "test")
KG_PARTS = ("general_dataloader", "kg_dataloader")  # of RecBole's loader of knowledge graphs
# The validation targets outside the target domain, for models that learn in the source first.
SOURCE_VALID = "source valid"


class PreparedData(NamedTuple):
    """Loaders and plans of one dataset; ``eval_data`` and ``plans`` are dicts by phase."""

    train_data: Any
    eval_data: dict[str, SequenceEvalLoader | BaselineEvalLoader]
    plans: dict[str, EvalPlan]
    train_dataset: "CrossDomainMixin"  # RecBole's loaders of knowledge graphs do not give it


def is_sequence_level(model_class: type) -> bool:
    """Whether a model trains on whole sequences (ours) rather than on RecBole's rows."""
    return bool(getattr(model_class, "sequence_level", False))


def create_dataset(config: "TemaConfig", model_class: type) -> "CrossDomainMixin":
    """Load the dataset of ``config`` in the form that ``model_class`` trains on.

    Raises:
        DataError: a file is missing or malformed. ConfigError: the model cannot be run here.
    """
    found = detect(config["data_path"], config["dataset"], config)
    _load_given_split(config, found["load_col"]["inter"])
    _leave_out_unloaded(config, found)
    attributes = _attribute_defaults(config, found["load_col"]["item"])
    stated = {key: config[key] for key in attributes}
    config.set_data_defaults({**found, **attributes})
    for key in attributes:
        if config[key] != stated[key]:  # said, since the config that was logged has RecBole's
            getLogger().info(f"{key} is {config[key]} here, not RecBole's {stated[key]}")
    config.set_data_defaults({**_without_unloaded(config, found), **_labels_by_sampling(config)})
    _read_numbers(config)
    if is_sequence_level(model_class):
        dataset_class = CrossDomainSequentialDataset
    else:
        dataset_class = baseline_class(config["model"], config["MODEL_TYPE"])
    if issubclass(dataset_class, KnowledgeBasedDataset):
        _check_knowledge_graph(config)
    dataset = dataset_class(config)
    _check_attributes(config, dataset)
    if config["MODEL_TYPE"] == ModelType.CONTEXT:
        _check_context(config, dataset)
    return dataset


def _load_given_split(config: "TemaConfig", columns: list[str]) -> None:
    """Add the column of the given split to those that are loaded, where the run splits by it."""
    path = Path(config["data_path"]) / f"{config['dataset']}.inter"
    there = SPLIT_FIELD in {field.name for field in read_header(path)}
    if read_rule(config["eval_args"]["split"]).kind == GIVEN:
        columns += [SPLIT_FIELD] if there else []
    elif there:
        getLogger().warning(
            f"{path.name} tells a split in its column '{SPLIT_FIELD}', which is not read: this run "
            f"splits by {config['eval_args']['split']} (eval_args.split; {{'given': "
            f"'{SPLIT_FIELD}'}} takes the column)"
        )


def _leave_out_unloaded(config: "TemaConfig", found: dict[str, Any]) -> None:
    """Bring what was found in line with the user's ``load_col`` or ``unload_col``.

    RecBole refuses both at once, and reads a feature file only if ``load_col`` names it.
    """
    unload = config["unload_col"] or {}
    if "load_col" in config.external_config_dict and config["load_col"] is not None:
        load = config["load_col"]
        _check_needed_columns(config, load)
        suffixes = [s for s in found["additional_feat_suffix"] or [] if s in load]
        found["additional_feat_suffix"] = suffixes or None
    elif unload:
        found["load_col"] = {
            source: [name for name in names if name not in unload.get(source, ())]
            for source, names in found["load_col"].items()
        }
        config["unload_col"] = None


def _check_needed_columns(config: "TemaConfig", load: Mapping[str, Any]) -> None:
    fields = {
        "inter": ("USER_ID_FIELD", "ITEM_ID_FIELD", "TIME_FIELD"),
        "item": ("ITEM_ID_FIELD", "DOMAIN_FIELD"),
    }
    given = read_rule(config["eval_args"]["split"]).kind == GIVEN
    for source, keys in fields.items():
        columns = [config[key] for key in keys]
        columns += [SPLIT_FIELD] if given and source == "inter" else []
        for needed in columns:
            if load.get(source) != "*" and needed not in load.get(source, ()):
                raise ConfigError(
                    f"load_col leaves out '{needed}' of {config['dataset']}.{source}, which every "
                    f"run reads; add it"
                )


def _without_unloaded(config: "TemaConfig", found: dict[str, Any]) -> dict:
    """Aliases and matrices of the feature files that are loaded: a user may leave some out."""
    suffixes = config["additional_feat_suffix"] or []
    loaded = {ids for suffix, (ids, _, _) in FEATURE_FILES.items() if suffix in suffixes}
    matrices = {key: name for key, name in (found["preload_weight"] or {}).items() if key in loaded}
    kept: dict[str, Any] = {"preload_weight": matrices or None}
    for key, fields in found.items():
        if key.startswith("alias_of_"):
            kept[key] = [field for field in fields if field in loaded] or None
    return kept


def _attribute_defaults(config: "TemaConfig", item_fields: Sequence[str]) -> dict:
    """The item field that feature-aware models read: tags, else the domain.

    RecBole's default is ``class``, a column of its own ml-100k.
    """
    field = "tags" if "tags" in item_fields else config["DOMAIN_FIELD"] or "domain"
    defaults = {"selected_features": [field], "item_attribute": field}
    # None, where a model can do without, stays none.
    return {key: value for key, value in defaults.items() if config[key]}


def _labels_by_sampling(config: "TemaConfig") -> dict:
    """Context-aware models learn from labels; events without any need sampled negatives."""
    if config["MODEL_TYPE"] != ModelType.CONTEXT or config["threshold"]:
        return {}
    return {
        "train_neg_sample_args": {
            **{"distribution": "uniform", "sample_num": 1, "alpha": 1.0},
            **{"dynamic": False, "candidate_num": 0},
        }
    }


def _read_numbers(config: "TemaConfig") -> None:
    """Have RecBole embed the numbers among ``selected_features``, and refuse what no model reads.

    RecBole's layer of features leaves out numbers that are not ``numerical_features``, and then
    does not fit the model around it; of a vector it would read the mean of its values alone.

    Raises:
        ConfigError: a field is of a type that the model cannot learn from.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    inter, types = (
        {field.name: field.type for field in read_header(folder / f"{name}.{suffix}")}
        for suffix in ("inter", "item")
    )
    for field in config["numerical_features"] or ():
        kind = {**inter, **types}.get(field, "")  # a missing one was named
        if "token" in kind or field == config["TIME_FIELD"]:
            raise ConfigError(
                f"numerical_features names '{field}', "
                + ("which orders the events" if kind == "float" else f"which is of type {kind}")
                + "; give fields of numbers (type float)"
            )
    for key in (key for key in ATTRIBUTE_KEYS if key in class_keys(config.model_class)):
        numbers = key == "selected_features" and not is_sequence_level(config.model_class)
        kinds = ("token", "token_seq", *(["float"] if numbers else []))
        named = [config[key]] if isinstance(config[key], str) else config[key] or []
        if numbers and not named:
            raise ConfigError(
                f"{key} is {config[key]!r}; model '{config['model']}' learns from one item field "
                f"or more, as [title]"
            )
        for field in named:
            if types.get(field, "token") not in kinds:
                usable = [name for name, kind in types.items() if kind in kinds]
                usable.remove(config["ITEM_ID_FIELD"])
                raise ConfigError(
                    f"{key} names '{field}', which is of type {types[field]}; model "
                    f"'{config['model']}' learns from fields of type {', '.join(kinds)}: "
                    f"{', '.join(usable)}"
                )
        found = [field for field in named if types.get(field) == "float"]
        before = config["numerical_features"] or []
        config["numerical_features"] = [*before, *(f for f in found if f not in before)]


def _check_attributes(config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
    for key in (key for key in ATTRIBUTE_KEYS if may_read(config.model_class, key)):
        fields = [config[key]] if isinstance(config[key], str) else config[key] or []
        absent = [field for field in fields if field not in dataset.item_feat]
        if absent:
            there = sorted(set(dataset.fields(source=[FeatureSource.ITEM])) - {dataset.iid_field})
            raise ConfigError(
                f"{key} names the field '{absent[0]}', which is not loaded from "
                f"{config['dataset']}.item; loaded are {', '.join(there)} (load_col adds more)"
            )


def _check_context(config: "TemaConfig", dataset: "CrossDomainMixin") -> None:
    """Refuse fields of events that a context-aware model would learn from: no candidate has them.

    Raises:
        ConfigError: names the field.
    """
    names = set(dataset.fields(source=[FeatureSource.INTERACTION])) - {dataset.label_field}
    tokens = set(dataset.token_like_fields)
    for field in sorted(names):
        if field in tokens or field in (config["numerical_features"] or ()):
            raise ConfigError(
                f"model '{config['model']}' would learn from the field '{field}' of "
                f"{config['dataset']}.inter, which no candidate has; leave it out of load_col or "
                f"numerical_features"
            )


def _check_knowledge_graph(config: "TemaConfig") -> None:
    for suffix in ("kg", "link"):
        path = Path(config["data_path"]) / f"{config['dataset']}.{suffix}"
        if not path.is_file():
            raise DataError(
                f"{path} not found: model '{config['model']}' needs a knowledge graph, which "
                f"dataset '{config['dataset']}' does not have"
            )


def data_preparation(
    config: "TemaConfig", dataset: "CrossDomainMixin", model_class: type
) -> PreparedData:
    """Split the dataset and build the training loader, the evaluation loaders and plans."""
    built = dataset.build()
    if is_sequence_level(model_class):
        train_data = SequenceTrainLoader(config, built[0])
    elif hasattr(model_class, "train_loader"):
        train_data = model_class.train_loader(config, built[0])
    else:
        train_data = _recbole_train_loader(config, dataset, built)
    eval_data: dict[str, SequenceEvalLoader | BaselineEvalLoader] = {}
    plans = {}
    for phase, part in zip(PHASES, built[1:], strict=True):
        plans[phase] = plan = eval_plan(config, dataset, phase)
        if is_sequence_level(model_class):
            eval_data[phase] = SequenceEvalLoader(config, part, plan)
        else:
            eval_data[phase] = BaselineEvalLoader(config, part, plan)
    if getattr(model_class, "validates_source", False):
        plans[SOURCE_VALID] = plan = eval_plan(config, dataset, "valid", of_source=True)
        eval_data[SOURCE_VALID] = BaselineEvalLoader(config, built[1], plan)
    dataset.asked.clear()  # by the preparation; from here on it is the model that asks
    return PreparedData(train_data, eval_data, plans, built[0])


def eval_plan(
    config: "TemaConfig", dataset: "CrossDomainMixin", phase: str, of_source: bool = False
) -> EvalPlan:
    """The targets and candidates of a phase, the same for every model on this dataset.

    Args:
        of_source: take the targets outside ``target_domain`` in place of those inside.
    """
    sequences, targets = dataset.sequences, dataset.targets(phase)
    plan = EvalPlan(
        targets.users,
        sequences.items[targets.events],
        targets.positions,
        dataset.item_domain,
        dataset.domain_names,
        candidates=config["candidates"],
        mode=config["eval_args"]["mode"][phase],
        neg_seed=config["eval_neg_seed"],
        sequences=(sequences.items, sequences.offsets),
        histories=(targets.histories.items, targets.histories.offsets),
        exclude_history=dataset.exclude_history,
        phase=phase,
    )
    if dataset.target_domain is not None:
        # Drawn for all and then cut, so that a target's candidates are the same in every run.
        numbers = np.arange(1, len(dataset.domain_names) + 1)
        plan = plan.of_domains(numbers[(numbers == dataset.target_domain) != of_source])
    if len(plan.left_out):
        SCREEN.info(
            f"{SOURCE_VALID if of_source else phase}: {len(plan.left_out)} of "
            f"{len(plan.left_out) + len(plan)} targets left out, which their users had before "
            f"(exclude_history)"
        )
    return plan


def _recbole_train_loader(
    config: "TemaConfig", dataset: "CrossDomainMixin", built: "Sequence[CrossDomainMixin]"
) -> "AbstractDataLoader":
    if config["MODEL_INPUT_TYPE"] is None:
        raise ConfigError(
            f"loss_type is {config['loss_type']!r}; model '{config['model']}' has CE and BPR"
        )
    try:
        sampler, _, _ = create_samplers(config, dataset, built)
        args = config["train_neg_sample_args"]
        if sampler is not None and args["distribution"] == "popularity":
            # RecBole's counts the held-out events too, the test targets among them.
            kind = type(sampler)
            sampler = kind("train", built[0], args["distribution"], args["alpha"])
            sampler = sampler.set_phase("train")
    except ValueError as error:
        raise DataError(
            f"dataset '{config['dataset']}': a user has had every item, so model "
            f"'{config['model']}' finds no negatives; take out that user or add items"
        ) from error
    if config["train_on"] == "target":
        sampler = within(sampler, np.flatnonzero(dataset.item_domain == dataset.target_domain))
    loader_class = get_dataloader(config, "train")
    if config["MODEL_TYPE"] == ModelType.KNOWLEDGE:
        args = config["train_neg_sample_args"]
        kg_sampler = KGSampler(dataset, args["distribution"], args["alpha"])
        loader = loader_class(config, built[0], sampler, kg_sampler, shuffle=True)
    else:
        loader = loader_class(config, built[0], sampler, shuffle=config["shuffle"])
    for part in (loader, *(getattr(loader, name, None) for name in KG_PARTS)):
        order = getattr(part, "sampler", None)
        if isinstance(order, DistributedSampler):  # RecBole leaves it the same for every seed
            order.seed = int(config["seed"])
    return loader
