"""What every cross-domain dataset adds to a RecBole dataset class: domains, exact order, features.

The mixin works on RecBole's ``Dataset``, ``SequentialDataset`` and their subclasses alike, so our
models and RecBole's own see the same users, items, order of events and split.
"""

from logging import getLogger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import recbole_tema.compat  # noqa: F401  before RecBole

# isort: split
import numpy as np
import pandas as pd
import torch
from recbole.data.interaction import Interaction
from recbole.utils.enum_type import FeatureSource, FeatureType

from recbole_tema.config.files import load_yaml, parse_value
from recbole_tema.data.feature_rows import check_feature_rows, drop_filtered_rows
from recbole_tema.data.reading import read_frame
from recbole_tema.data.schema import FEATURE_FILES
from recbole_tema.data.split import GIVEN, MOMENTS, PARTS, SHARES, SPLIT_FIELD, read_rule
from recbole_tema.data.split_sequences import SplitMixin
from recbole_tema.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset as Base
else:
    Base = object

PROFILE_ID = FEATURE_FILES["userllm"][0]
FILTERS = ("val_interval", "user_inter_num_interval", "item_inter_num_interval", "rm_dup_inter")
RESERVED = ("overall", "macro")  # slices of the evaluation, beside the domains
TAGS, ITEM_FIELDS = "tags", "item fields"  # as `asked` calls them


class CrossDomainMixin(SplitMixin, Base):
    """Domains, exactly ordered sequences and features on top of a RecBole dataset class.

    Attributes:
        item_domain: ``(n_items,)`` int64, 0 for the padding item, else the domain id from 1.
        domain_names: names of the domains 1..D, in the order of the ``.item`` file.
        events_cut, users_cut: how many events `FILTERS` drop, and how many users keep others.
        target_domain: number of the one domain that is recommended in; None: all.
        tags: None, or ``(tag_ids, tag_weights)``, both ``(n_items, T)``, padded with 0.
        asked: names of the features that were asked for since the data were prepared, found or
            not: what the model reads beside ids and domains. The parts of the split share it.
    """

    inter_feat: Any  # RecBole's: a frame, and an Interaction once it is built

    def _get_field_from_config(self) -> None:
        self.asked: set[str] = set()
        super()._get_field_from_config()
        self.domain_field = self.config["DOMAIN_FIELD"] or "domain"

    def _load_feat(self, filepath: str, source: FeatureSource | str) -> pd.DataFrame | None:
        load, skip = self._get_load_and_unload_col(source)
        if load == set():
            return None
        frame, types = read_frame(
            filepath,
            load,
            skip,
            seq_separator=self.config["seq_separator"],
            required=(self.uid_field, self.iid_field, self.time_field, self.domain_field),
        )
        for name, kind in types.items():
            if source != "link":
                self.field2source[name] = source
                self.field2type[name] = FeatureType(kind)
            if kind.endswith("seq"):
                self.field2seqlen[name] = max(map(len, frame[name]))
                # A tag that is cut off takes its weight along.
                limits = self.config["seq_len"] or {}
                limit = limits.get("tags" if name == "tag_weights" else name)
                if limit:
                    frame[name] = [row[:limit] for row in frame[name]]
                    self.field2seqlen[name] = min(limit, self.field2seqlen[name])
            elif source != "link":
                self.field2seqlen[name] = 1
            if "float" in kind:
                self.field2bucketnum[name] = 2
        self._refuse_names(filepath, frame)
        if source == FeatureSource.INTERACTION and SPLIT_FIELD in frame:
            bad = ~frame[SPLIT_FIELD].isin(PARTS)
            if bad.any():
                raise DataError(
                    f"{filepath}, line {bad.idxmax() + 2}: {SPLIT_FIELD} is "
                    f"'{frame[SPLIT_FIELD][bad].iloc[0]}'; an event is marked {', '.join(PARTS)}"
                )
        if source == FeatureSource.ITEM and self.domain_field in frame:
            self._check_item_rows(filepath, frame)
        return frame

    def _refuse_names(self, filepath: str, frame: pd.DataFrame) -> None:
        """Names that would mean something else here: RecBole's padding, parts of metric names."""
        for field in {self.uid_field, self.iid_field, self.domain_field} & set(frame):
            bad = frame[field] == "[PAD]"
            if field == self.domain_field:
                bad |= frame[field].str.contains(r"[/=\s]") | frame[field].isin(RESERVED)
            if bad.any():
                raise DataError(
                    f"{filepath}, line {bad.idxmax() + 2}: {field} '{frame[field][bad].iloc[0]}' "
                    f"cannot be a name; rename it ([PAD] is RecBole's padding, and a domain is "
                    f"part of its metrics' names: no blank, '/' or '=', nor {', '.join(RESERVED)})"
                )

    def _check_item_rows(self, filepath: str, frame: pd.DataFrame) -> None:
        repeated = frame[self.iid_field].duplicated(keep="first")
        if not repeated.any():
            return
        first = frame.drop_duplicates(self.iid_field).set_index(self.iid_field)[self.domain_field]
        again = frame[repeated]
        other = again[first.loc[again[self.iid_field]].to_numpy() != again[self.domain_field]]
        if len(other):
            row = other.iloc[0]
            raise DataError(
                f"{filepath}, line {other.index[0] + 2}: item '{row[self.iid_field]}' is in domain "
                f"'{row[self.domain_field]}' here and in '{first[row[self.iid_field]]}' above; an "
                f"item has one domain (prefix the ids by their domain if they collide)"
            )
        getLogger().warning(
            f"{filepath}: {len(again)} repeated item rows left out, the first of each is kept "
            f"(first repeated: line {again.index[0] + 2}, '{again[self.iid_field].iloc[0]}')"
        )

    def _filter_inter_by_user_or_item(self) -> None:
        # RecBole drops the events of items without a row in silence: their domain is unknown.
        if self.item_feat is None:
            return
        known = self.inter_feat[self.iid_field].isin(self.item_feat[self.iid_field])
        if not known.all():
            line = int(known.idxmin()) + 2
            raise DataError(
                f"{self.dataset_path}/{self.dataset_name}.inter, line {line}: item "
                f"'{self.inter_feat[self.iid_field][known.idxmin()]}' has no row in "
                f"{self.dataset_name}.item, so no domain ({int((~known).sum())} such events); add "
                f"the item there or remove its events"
            )

    def _filter_by_inter_num(self) -> None:
        # RecBole counts all events in Python even where its default admits every number of them.
        intervals = {self.config["user_inter_num_interval"], self.config["item_inter_num_interval"]}
        if not intervals <= {None, "[0,inf)"}:
            super()._filter_by_inter_num()

    def _data_filtering(self) -> None:
        check_feature_rows(self)
        before = self.inter_feat[self.uid_field].value_counts() if self._filters() else None
        super()._data_filtering()
        drop_filtered_rows(self)
        self.events_cut, self.users_cut = 0, 0
        if before is not None:
            after = self.inter_feat[self.uid_field].value_counts()
            self.events_cut = int(before.sum() - after.sum())
            self.users_cut = int((before[after.index] != after).sum())

    def _filters(self) -> list[str]:
        """Those of `FILTERS` that may drop events."""
        return [key for key in FILTERS if self.config[key] not in (None, "[0,inf)", {})]

    def _reset_index(self) -> None:
        if self.inter_feat.empty:
            given = [f"{key} ({self.config[key]})" for key in self._filters()]
            raise DataError(
                f"{' and '.join(given)} leaves no event of dataset '{self.dataset_name}'; loosen it"
            )
        super()._reset_index()

    def _init_alias(self) -> None:
        # RecBole knows aliases of users and items; tags of items and of the tag list are one more.
        tag_fields = [f for f in self.config["alias_of_tag_id"] or [] if f in self.field2type]
        if tag_fields and "tags" in self.field2type:
            self.alias["tag_id"] = np.array(["tags"] + [f for f in tag_fields if f != "tags"])
        super()._init_alias()

    def _data_processing(self) -> None:
        super()._data_processing()
        self._set_domains()
        self._set_sequences()
        self._set_tags()
        self._log_summary()

    def _set_domains(self) -> None:
        if self.item_feat is None or self.domain_field not in self.item_feat:
            raise DataError(
                f"dataset '{self.dataset_name}' has no field '{self.domain_field}' in "
                f"{self.dataset_name}.item; set DOMAIN_FIELD or add the column "
                f"'{self.domain_field}:token'"
            )
        self.item_domain = self.item_feat[self.domain_field].to_numpy(dtype=np.int64)
        self.domain_names = [str(name) for name in self.field2id_token[self.domain_field][1:]]
        if len(self.domain_names) < 2:
            raise DataError(
                f"{self.dataset_name}.item has one domain only ('{self.domain_names[0]}'); "
                f"cross-domain recommendation needs two or more"
            )
        wanted = self.config["target_domain"]
        if wanted is not None and str(wanted) not in self.domain_names:
            raise ConfigError(
                f"target_domain is '{wanted}'; the domains of '{self.dataset_name}' are "
                f"{', '.join(self.domain_names)}"
            )
        self.target_domain: int | None = None
        if wanted is not None:
            self.target_domain = self.domain_names.index(str(wanted)) + 1
        events = np.bincount(self.item_domain[self.inter_feat[self.iid_field].to_numpy()])
        if (events > 0).sum() < 2:
            raise DataError(
                f"dataset '{self.dataset_name}' has events in one domain only "
                f"('{self.domain_names[events.argmax() - 1]}'); cross-domain recommendation needs "
                f"two or more"
            )

    def _set_tags(self) -> None:
        self._tags = None
        if "tags" not in self.item_feat:
            return
        ids = self.item_feat["tags"].to_list()
        width = max(1, max(map(len, ids)))
        tag_ids = np.zeros((len(ids), width), dtype=np.int64)
        weights = np.zeros((len(ids), width), dtype=np.float32)
        given = self.item_feat["tag_weights"].to_list() if "tag_weights" in self.item_feat else None
        for row, tags in enumerate(ids):
            tag_ids[row, : len(tags)] = tags
            weights[row, : len(tags)] = 1.0
            if given is not None:
                if len(given[row]) != len(tags):
                    token = self.id2token(self.iid_field, row)
                    raise DataError(
                        f"{self.dataset_name}.item: item '{token}' has {len(tags)} tags and "
                        f"{len(given[row])} tag_weights; write one weight for each tag"
                    )
                weights[row, : len(tags)] = given[row]
        if (weights < 0).any():
            row = int(np.flatnonzero((weights < 0).any(axis=1))[0])
            raise DataError(
                f"{self.dataset_name}.item: item '{self.id2token(self.iid_field, row)}' has a "
                f"negative weight in tag_weights ({weights[row].min():g}); weights are >= 0"
            )
        self._tags = torch.from_numpy(tag_ids), torch.from_numpy(weights)

    @property
    def tags(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """None, or ``(tag_ids, tag_weights)``, both ``(n_items, T)``, padded with 0."""
        self.asked.add(TAGS)
        return self._tags

    def fields(self, ftype: list | None = None, source: list | None = None) -> list[str]:
        """RecBole's; it is asked for by models that read all fields."""
        self.asked.add(ITEM_FIELDS)
        return super().fields(ftype, source)

    def get_item_feature(self) -> Interaction:
        """RecBole's: all item fields."""
        self.asked.add(ITEM_FIELDS)
        return super().get_item_feature()

    def get_preload_weight(self, field: str) -> np.ndarray:
        """RecBole's: the matrix of a feature file."""
        self.asked.add(field)
        return super().get_preload_weight(field)

    def _preload_weight_matrix(self) -> None:
        """Matrices of the feature files as float32, with a mask of the rows that are there."""
        self._feature_rows = {}
        for id_field, value_field in (self.config["preload_weight"] or {}).items():
            feat_name = f"{self.field2source.get(id_field)}_feat"
            frame = getattr(self, feat_name, None)
            if frame is None or value_field not in frame:
                raise ConfigError(
                    f"preload_weight names '{id_field}: {value_field}', but no loaded file of "
                    f"dataset '{self.dataset_name}' has these columns"
                )
            rows = frame[value_field].to_list()
            widths = np.unique([len(row) for row in rows])
            if len(widths) > 1:
                odd = next(i for i, row in enumerate(rows) if len(row) != len(rows[0]))
                raise DataError(
                    f"'{value_field}' of dataset '{self.dataset_name}': row {odd + 1} has "
                    f"{len(rows[odd])} values, the first row has {len(rows[0])}"
                )
            matrix = np.zeros((self.num(id_field), widths[0]), dtype=np.float32)
            present = np.zeros(len(matrix), dtype=bool)
            ids = frame[id_field].to_numpy()
            matrix[ids] = np.stack(rows)
            present[ids] = True
            self._preloaded_weight[id_field] = matrix
            self._feature_rows[id_field] = present
        # The matrix has it all: RecBole would copy the frame into one more padded tensor.
        for suffix, (id_field, _, _) in FEATURE_FILES.items():
            if id_field in self._preloaded_weight and f"{suffix}_feat" in self.feat_name_list:
                self.feat_name_list.remove(f"{suffix}_feat")
                setattr(self, f"{suffix}_feat", None)

    def _check_profiles(self) -> None:
        """Refuse profiles that were made of other events than this split's training events.

        Raises:
            ConfigError: they were, by the card; where it says nothing, they are of leave-one-out.
        """
        path = Path(self.dataset_path) / f"{self.dataset_name}.yaml"
        card = load_yaml(path) if path.is_file() else {}
        options = (card.get("profiling") or {}).get("options") or {}
        made = read_rule(parse_value(options.get("split")))
        if made != self.split.rule:
            wanted = self.config["eval_args"]["split"]
            raise ConfigError(
                f"{self.dataset_name}.userllm was made of the training events of another split "
                f"than eval_args.split {wanted}, so profiles may tell of its targets; make them "
                f"anew (python -m dataset_tools profile {self.dataset_name} --force --split "
                f'"{wanted}") or leave them out (move the file away)'
            )
        # Of what is left others may be held out: events that the profiles were made of. Users that
        # are gone as a whole are nothing to leave-one-out, but to shares of all events.
        kind = self.split.rule.kind
        if kind not in (MOMENTS, GIVEN) and (self.events_cut if kind == SHARES else self.users_cut):
            raise ConfigError(
                f"{' or '.join(self._filters())} drops {self.events_cut} events, of which "
                f"{self.users_cut} users keep others, so what is held out may be events that "
                f"{self.dataset_name}.userllm was made of, and profiles may tell of targets; write "
                "the dataset without these events and make profiles of it, or leave them out (move "
                "the file away)"
            )

    def feature(self, id_field: str) -> tuple[torch.Tensor, torch.Tensor] | None:
        """The matrix of a feature file and which rows it has.

        Args:
            id_field: ``text_iid``, ``image_iid``, ``llm_iid``, ``profile_uid`` or ``tag_id``.

        A profile was made of a user's events in all domains, so where ``overlap_ratio`` takes some
        of them out of the training data, the user's profile goes too.

        Returns:
            None where the dataset has no such file, else (matrix ``(n, d)`` float32 tensor,
            present ``(n,)`` bool tensor), rows by internal id; absent rows are 0 and not present.
        """
        self.asked.add(id_field)
        if id_field not in self._feature_rows:
            return None
        if id_field == PROFILE_ID:
            self._check_profiles()
        matrix = torch.from_numpy(self._preloaded_weight[id_field])
        present = torch.from_numpy(self._feature_rows[id_field])
        needed = self.num(id_field)
        matrix, present = matrix[:needed], present[:needed]
        if id_field == PROFILE_ID and self.thinned_users is not None:
            matrix, present = matrix.clone(), present.clone()
            matrix[self.thinned_users], present[self.thinned_users] = 0.0, False
        return matrix, present

    def _log_summary(self) -> None:
        self._log_split()
        absent = [
            f"{self.dataset_name}.{suffix}"
            for suffix, (id_field, _, _) in FEATURE_FILES.items()
            if id_field not in self._feature_rows
        ]
        if absent:
            getLogger().info(f"not in this dataset (models go without): {', '.join(absent)}")
