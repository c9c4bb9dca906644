"""Profiles of users in words, and their vectors, for LLM4CDSR: NAME.userllm.

The items that a user chose are parted by the k-means cluster of their vectors; the language model
puts each part in a sentence, then the sentences into one profile, which a text encoder or the
model turns into a vector. Only training events take part: neither the validation nor the test
target of a user reaches a prompt.
"""

import logging
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dataset_tools.dataset.dataset import Dataset, training_events, update_dataset
from dataset_tools.dataset.provenance import (
    BY_MODEL,
    counted,
    digest,
    note_of,
    reason_to_skip,
    say_refused,
)
from dataset_tools.encoders.loading import load_encoder
from dataset_tools.llm.prompts import MAX_FIELD, field_text
from dataset_tools.llm.requests import Answer, Completion, Embedding
from dataset_tools.llm.session import NotAsked, Session
from dataset_tools.options import ProfileOptions, split_rule
from recbole_tema.data.feature_file import FeatureTable
from recbole_tema.errors import DataError

log = logging.getLogger(__name__)

MAX_TITLE = 80  # characters of a title in a list of titles
MAX_PROFILE = 600  # characters of a profile


def profile_digest(
    dataset: Dataset, table: FeatureTable, options: ProfileOptions | None = None
) -> str:
    """Digest of all that profiles are made of: training events, titles, item vectors."""
    events = training_of(dataset, options)
    return digest(
        events["user_id"],
        events["item_id"],
        dataset.column("item_id"),
        dataset.column("title"),
        table.tokens,
        np.ascontiguousarray(table.values, np.float32).tobytes(),
    )


def training_of(dataset: Dataset, options: ProfileOptions | None = None) -> pd.DataFrame:
    """The training events of the split that the options name."""
    domain_of = dict(zip(dataset.column("item_id"), dataset.column("domain"), strict=True))
    rule = split_rule(options.split if options else None)
    return training_events(dataset.events, rule, domain_of)


def cluster_items(vectors: np.ndarray, clusters: int, seed: int) -> np.ndarray:
    """k-means cluster (n) of item vectors (n, d), by scikit-learn, of at most n clusters."""
    from sklearn.cluster import KMeans

    means = KMeans(min(clusters, len(vectors)), n_init=4, random_state=seed)
    return means.fit_predict(vectors.astype(np.float64))


def user_parts(
    events: pd.DataFrame, cluster_of: dict[str, int], options: ProfileOptions
) -> dict[str, list[list[str]]]:
    """user -> parts of the user's items, the largest part first.

    Args:
        events: Training events in the order of time: see `training_events`.
        cluster_of: Cluster of each item that has a vector and a title.
        options: At most `parts` parts of the newest `part_items` items.
    """
    known = events[events["item_id"].isin(cluster_of)]
    result = {}
    for user, items in known.groupby("user_id", sort=True)["item_id"]:
        parts: dict[int, list[str]] = {}
        for item in dict.fromkeys(items):
            parts.setdefault(cluster_of[item], []).append(item)
        ranked = sorted(parts.items(), key=lambda part: (-len(part[1]), part[0]))
        result[str(user)] = [mine[-options.part_items :] for _, mine in ranked[: options.parts]]
    return dict(list(result.items())[: options.limit])


def write_profiles(
    dataset: Dataset, session: Session, parts: dict[str, list[list[str]]]
) -> dict[str, str]:
    """user -> profile in words; users whose every part came back empty are left out."""
    titles = dict(zip(dataset.column("item_id"), dataset.column("title"), strict=True))
    rows = [
        (user, joined_titles([titles[item] for item in part]))
        for user, mine in parts.items()
        for part in mine
    ]
    file = session.prompt("part")
    asked = [
        Completion(file.prompt("", {"items": text}), file.max_tokens, ("\n",)) for _, text in rows
    ]
    sentences: dict[str, list[str]] = {}
    for (user, _), answer in zip(rows, session.ask("part", asked), strict=True):
        if text := sentence(answer):
            sentences.setdefault(user, []).append(text)
    file = session.prompt("profile")
    several = {user: texts for user, texts in sentences.items() if len(texts) > 1}
    asked = [
        Completion(file.prompt("", {"parts": " ".join(texts)}), file.max_tokens, ("\n",))
        for texts in several.values()
    ]
    # A user of one part has its sentence for a profile: there is nothing to join.
    profiles = {user: " ".join(texts) for user, texts in sentences.items()}
    for user, answer in zip(several, session.ask("profile", asked), strict=True):
        profiles[user] = sentence(answer) or profiles[user]
    return profiles


def joined_titles(titles: Sequence[str]) -> str:
    """Titles in one line, of the newest ones as many as a field of a prompt holds; newest last."""
    kept: list[str] = []
    room = MAX_FIELD
    for title in reversed([field_text(title)[:MAX_TITLE].strip() for title in titles]):
        room -= len(title) + 2
        if room < 0 and kept:
            break
        kept.append(title)
    return "; ".join(reversed(kept))


def sentence(answer: Answer) -> str:
    """What a model wrote, as one line without quotes; empty where it wrote nothing."""
    if answer.fault or not isinstance(answer.value, str):
        return ""
    return field_text(answer.value).strip("\"'* ")[:MAX_PROFILE]


def profile_dataset(
    dataset: Dataset, session: Session, text_encoder: str, options: ProfileOptions, force: bool
) -> str:
    """Write NAME.userllm and the profiles in words, NAME.profiles.tsv.

    Args:
        dataset: With item vectors: NAME.itemllm, or NAME.itemtext where there is none.
        session: The language model and its answers.
        text_encoder: Spec of the encoder of profiles, see `load_encoder`; "llm" for the language
            model's own embeddings.
        options: Numbers.
        force: Write again where there are vectors of users.

    Raises:
        BackendError: the model cannot go on; run again to go on from there.
        DataError: there are no item vectors to cluster, or no profile came out.
    """
    table = dataset.feature("itemllm") or dataset.feature("itemtext")
    inputs = profile_digest(dataset, table, options) if table is not None else ""
    n_users = dataset.events["user_id"].nunique()
    maker = f"{BY_MODEL}{session.backend.identity},"
    skip = reason_to_skip(dataset, "profile_emb", maker, inputs, options.limit)
    if skip and not force:
        return skip
    if table is None and session.dry:
        return "profiles: item vectors come first, by which a user's items are parted"
    if table is None:
        raise DataError(
            f"{dataset.folder}: neither {dataset.name}.itemllm nor .itemtext, by which a user's "
            f"items are parted; run 'python -m dataset_tools embed {dataset.name}' first"
        )
    titles = zip(dataset.column("item_id"), dataset.column("title"), strict=True)
    titled = {item for item, title in titles if field_text(title)}
    clusters = cluster_items(table.values, options.clusters, options.seed)
    cluster_of = {
        item: int(c) for item, c in zip(table.tokens, clusters, strict=True) if item in titled
    }
    training = training_of(dataset, options)
    parts = user_parts(training, cluster_of, options)
    if not parts:
        raise DataError(
            f"{dataset.path('inter')}: no user has a training event of an item with a title "
            "and a vector; there is nothing to tell of anyone"
        )
    if not session.dry:
        say_refused(dataset, "profile_emb")
    try:
        profiles = write_profiles(dataset, session, parts)
        if not profiles and not session.dry:
            raise DataError(f"{session.backend.identity}: wrote no profile of {len(parts)} users")
        users, matrix = list(profiles), None
        if text_encoder == "llm":
            users, matrix = _by_model(session, profiles)
    except NotAsked as task:
        return f"stopped before '{task}', on whose answers the rest depends"
    if session.dry:
        return "every answer is kept: nothing would be asked"
    by = f"embedded by {session.backend.identity}"
    if matrix is None:
        encoder = load_encoder(text_encoder)
        matrix, by = (
            encoder.texts([profiles[user] for user in users]),
            f"embedded by {encoder.name}",
        )
    lines = [f"{user}\t{profiles[user]}\n" for user in users]
    update_dataset(
        dataset,
        features={"userllm": (users, matrix)},
        generated={
            "profile_emb": note_of(
                f"{BY_MODEL}{session.made_by('part', 'profile')}, of training events only, "
                f"clustered by {dataset.generated('llm_emb') or 'item vectors'}, {by}",
                inputs,
            )
        },
        notes={"profiling": {"options": dict(vars(options))}},
        reports={f"{dataset.name}.profiles.tsv": "".join(["user_id\tprofile\n", *lines])},
    )
    known = training.loc[training["item_id"].isin(cluster_of), "user_id"].nunique()
    others = {
        "without a training event of an item with a title and a vector": n_users - known,
        "beyond --limit": known - len(parts),
        "without an answer of the model": len(parts) - len(users),
    }
    done = counted(len(users), n_users, "users have profiles", others)
    return f"{dataset.path('userllm')}: {done}"


def _by_model(session: Session, profiles: dict[str, str]) -> tuple[Sequence[str], np.ndarray]:
    answers = session.ask("embed", [Embedding(text) for text in profiles.values()])
    pairs = [(u, a.value) for u, a in zip(profiles, answers, strict=True) if not a.fault]
    if not pairs:
        raise DataError(f"{session.backend.identity}: gave no vector of {len(profiles)} profiles")
    return [user for user, _ in pairs], np.stack([np.asarray(vector) for _, vector in pairs])
