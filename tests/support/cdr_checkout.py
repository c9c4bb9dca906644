"""A RecBole-CDR checkout to test with: the package of PyPI, and small models of our own in it.

The package on PyPI has all of RecBole-CDR but its models; these here are written on its base class,
one for each way of training that the bridge knows.
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

CMF = '''
import torch
from recbole.utils import InputType
from recbole_cdr.model.crossdomain_recommender import CrossDomainRecommender


class CMF(CrossDomainRecommender):
    """Shared vectors of users, trained on labels of both domains at once."""

    input_type = InputType.POINTWISE

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.labels = [d.label_field for d in
                       (dataset.source_domain_dataset, dataset.target_domain_dataset)]
        self.users = torch.nn.Embedding(self.total_num_users, config["embedding_size"])
        self.items = torch.nn.Embedding(self.total_num_items, config["embedding_size"])
        self.missing = config["no_such_key"]

    def calculate_loss(self, interaction):
        source, target = self.labels
        parts = (
            (self.SOURCE_USER_ID, self.SOURCE_ITEM_ID, source),
            (self.TARGET_USER_ID, self.TARGET_ITEM_ID, target),
        )
        losses = []
        for user, item, label in parts:
            logits = (self.users(interaction[user]) * self.items(interaction[item])).sum(1)
            losses.append(
                torch.nn.functional.binary_cross_entropy_with_logits(logits, interaction[label])
            )
        return tuple(losses)

    def full_sort_predict(self, interaction):
        users = self.users(interaction[self.TARGET_USER_ID])
        return (users @ self.items.weight[: self.target_num_items].T).view(-1)
'''
EMCDR = '''
import torch
from recbole_cdr.model.crossdomain_recommender import CrossDomainRecommender


class EMCDR(CrossDomainRecommender):
    """Pairs in the source, then in the target, then a mapping of the shared users."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        size = config["source_embedding_size"]
        self.phase, self.phases = None, []
        names = ("source_users", "target_users", "source_items", "target_items")
        for name in names:
            rows = self.total_num_users if "user" in name else self.total_num_items
            setattr(self, name, torch.nn.Embedding(rows, size))
        self.mapping = torch.nn.Linear(size, size)

    def set_phase(self, phase):
        self.phase = phase
        self.phases.append(phase)

    def pair_loss(self, user, item, other):
        user = torch.nn.functional.dropout(user, 0.2, self.training)
        return -torch.nn.functional.logsigmoid((user * (item - other)).sum(1)).mean()

    def calculate_loss(self, batch):
        if self.phase == "OVERLAP":
            ids = batch[self.OVERLAP_ID]
            gap = self.mapping(self.source_users(ids)) - self.target_users(ids)
            return (gap ** 2).mean()
        if self.phase == "SOURCE":
            return self.pair_loss(self.source_users(batch[self.SOURCE_USER_ID]),
                                  self.source_items(batch[self.SOURCE_ITEM_ID]),
                                  self.source_items(batch[self.SOURCE_NEG_ITEM_ID]))
        return self.pair_loss(self.target_users(batch[self.TARGET_USER_ID]),
                              self.target_items(batch[self.TARGET_ITEM_ID]),
                              self.target_items(batch[self.TARGET_NEG_ITEM_ID]))

    def predict(self, batch):
        if self.phase == "SOURCE":
            users = self.source_users(batch[self.SOURCE_USER_ID])
            return (users * self.source_items(batch[self.SOURCE_ITEM_ID])).sum(1)
        ids = batch[self.TARGET_USER_ID]
        users = self.target_users(ids)
        if self.phase == "OVERLAP":
            shared = (ids < self.overlapped_num_users)[:, None]
            users = torch.where(shared, self.mapping(self.source_users(ids)), users)
        return (users * self.target_items(batch[self.TARGET_ITEM_ID])).sum(1)
'''


def write_checkout(root: Path) -> Path:
    """A folder like a clone of RecBole-CDR, with the models CMF and EMCDR of this file."""
    package = root / "recbole_cdr"
    shutil.copytree(distribution("recbole-cdr").locate_file("recbole_cdr"), package)
    models = package / "model" / "cross_domain_recommender"
    models.mkdir()
    for name, text in (("cmf", CMF), ("emcdr", EMCDR)):
        (models / f"{name}.py").write_text(text, encoding="utf-8")
    return root
