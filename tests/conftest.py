"""Small datasets, written as plain text so that no code under test makes its own input."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers that each start a thread a core are slower than one worker; before torch is loaded.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import settings as examples

from .small_genre import write_small_genre

# A suite that passed once passes again; `--hypothesis-profile=random` looks at other examples.
# How long an example takes to make is the machine's matter: a busy one failed a health check.
anywhere = {"suppress_health_check": [HealthCheck.too_slow]}
examples.register_profile("same", derandomize=True, **anywhere)
examples.register_profile("random", derandomize=False, **anywhere)
examples.load_profile("same")


def write(path, header, rows):
    """Write one atomic file from a header line and rows of cells."""
    lines = ["\t".join(header)] + ["\t".join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def vector(rng, size):
    return " ".join(f"{x:.4f}" for x in rng.normal(size=size))


def make_dataset(
    root,
    name="tiny",
    domains=("book", "film"),
    n_users=40,
    items_per_domain=15,
    max_events=14,
    features=("itemtext", "itemllm", "userllm", "tag"),
    seed=0,
):
    """A dataset folder ``root/name``: users walk through neighbouring items, domains mixed.

    Users 0, 1 and 2 have 1, 2 and 3 events; every third user stays in one domain.
    """
    rng = np.random.default_rng(seed)
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    items = [(f"{d}{i}", d) for d in domains for i in range(items_per_domain)]
    events, clock = [], 1_000_000_000
    for user in range(n_users):
        length = user + 1 if user < 3 else int(rng.integers(4, max_events + 1))
        place = rng.integers(items_per_domain, size=len(domains))
        only = user % len(domains) if user % 3 == 0 else None
        for _ in range(length):
            d = only if only is not None else int(rng.integers(len(domains)))
            place[d] = (place[d] + rng.integers(1, 3)) % items_per_domain
            clock += int(rng.integers(0, 2))
            events.append((f"u{user}", f"{domains[d]}{place[d]}", clock))
    # Users' events are mixed in time, so that no order of users is the order of the clock.
    start = {f"u{user}": int(rng.integers(200)) for user in range(n_users)}
    events = [(user, item, time // 7 + start[user]) for user, item, time in events]
    order = rng.permutation(len(events))
    order = order[np.argsort([events[i][2] for i in order], kind="stable")]
    write(
        folder / f"{name}.inter",
        ["user_id:token", "item_id:token", "timestamp:float"],
        [events[i] for i in order],
    )
    tags = [f"tag_{t}" for t in range(6)]
    write(
        folder / f"{name}.item",
        [
            "item_id:token",
            "domain:token",
            "title:token_seq",
            "tags:token_seq",
            "tag_weights:float_seq",
        ],
        [
            (token, d, f"The {token}", f"{tags[i % 6]} {tags[(i * 7 + 1) % 6]}", "0.7 0.3")
            for i, (token, d) in enumerate(items)
        ],
    )
    if "itemtext" in features:  # the last item has no text
        rows = [(token, vector(rng, 12)) for token, _ in items[:-1]]
        write(folder / f"{name}.itemtext", ["text_iid:token", "clip_text:float_seq"], rows)
    if "itemllm" in features:
        rows = [(token, vector(rng, 16)) for token, _ in items]
        write(folder / f"{name}.itemllm", ["llm_iid:token", "llm_emb:float_seq"], rows)
    if "userllm" in features:  # some users have no profile
        rows = [(f"u{u}", vector(rng, 16)) for u in range(3, n_users, 2)]
        write(folder / f"{name}.userllm", ["profile_uid:token", "profile_emb:float_seq"], rows)
    if "tag" in features:
        rows = [(tag, " ".join(domains), vector(rng, 12)) for tag in tags]
        write(
            folder / f"{name}.tag",
            ["tag_id:token", "tag_domain:token_seq", "tag_emb:float_seq"],
            rows,
        )
    return folder


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory):
    """A data path with ``tiny`` (two domains), ``three`` (three) and ``bare`` (no features)."""
    root = tmp_path_factory.mktemp("data")
    make_dataset(root)
    make_dataset(root, "three", domains=("book", "film", "game"), seed=1)
    make_dataset(root, "bare", features=(), seed=2)
    return root


@pytest.fixture(scope="session")
def small_root(tmp_path_factory):
    """A data path with ``genre-small``, the first users of ml-100k-genre."""
    root = tmp_path_factory.mktemp("small")
    write_small_genre(root)
    return root


@pytest.fixture
def settings(tiny_root, tmp_path, monkeypatch):
    """Config keys for a quick run on the tiny datasets, writing under a temporary folder."""
    monkeypatch.chdir(tmp_path)
    return {
        "data_path": str(tiny_root),
        "checkpoint_dir": str(tmp_path / "saved"),
        "epochs": 2,
        "train_batch_size": 64,
        "eval_batch_size": 16,
        "MAX_ITEM_LIST_LENGTH": 8,
        "hidden_size": 16,
        "show_progress": False,
        "topk": [1, 3, 5],
        "valid_metric": "NDCG@3",
        "metrics": ["Hit", "NDCG", "MRR", "Recall"],
    }


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny models are fastest on one thread, also where other programs use the other cores."""
    torch.set_num_threads(1)
