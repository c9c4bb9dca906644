"""Small datasets, written as plain text so that no code under test makes its own input."""

import numpy as np


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
