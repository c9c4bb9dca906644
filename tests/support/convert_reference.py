"""The filters of a conversion by plain loops over tuples: what its SQL is checked against."""

import hashlib
from collections import Counter, defaultdict
from typing import NamedTuple


class Event(NamedTuple):
    """One event, in the order of the input."""

    user: str
    item: str
    domain: str
    time: float
    rating: float | None


def filtered(events, f):
    """The events that the filters keep, in the order of time, ties in that of the input."""
    kept = list(events)
    if f.min_rating is not None:
        kept = [e for e in kept if e.rating is not None and e.rating >= f.min_rating]
    kept = [e for e in kept if f.after is None or e.time >= f.after]
    kept = [e for e in kept if f.before is None or e.time < f.before]
    kept.sort(key=lambda e: e.time)
    if f.dedupe is not None:
        last, left = {}, []
        for e in kept:
            key = (e.user, e.domain, e.item)
            if key not in last or e.time - last[key] > f.dedupe:
                left.append(e)
            last[key] = e.time
        kept = left
    kept, thinned = sampled(kept, f)
    while True:
        n = len(kept)
        for least, key in (
            (f.user_core, lambda e: e.user),
            (f.domain_core, lambda e: (e.user, e.domain)),
            (f.item_core, lambda e: (e.domain, e.item)),
        ):
            counts = Counter(map(key, kept))
            kept = [e for e in kept if counts[key(e)] >= least]
        if f.single_domain == "drop":
            kept = in_several(kept, thinned)
        if len(kept) == n:
            return kept


def domains_of(events):
    """User -> domain -> number of events."""
    found = defaultdict(Counter)
    for e in events:
        found[e.user][e.domain] += 1
    return found


def in_several(events, others=()):
    """The events of users of several domains, and of others."""
    found = domains_of(events)
    return [e for e in events if len(found[e.user]) > 1 or e.user in others]


def drawn(users, seed):
    """Users in the order in which a sample takes them."""
    return sorted(users, key=lambda user: hashlib.md5(f"{seed}:{user}".encode()).hexdigest())


def sampled(kept, f):
    """The filters that take users by lot; the events left, and users who lost domains."""
    left = {}
    if f.single_domain == "drop":
        kept = in_several(kept)
    elif f.single_domain != "keep":
        found = domains_of(kept)
        chosen = {user for user, domains in found.items() if len(domains) > 1}
        for domain in {e.domain for e in kept}:
            single = [user for user, domains in found.items() if set(domains) == {domain}]
            chosen |= set(drawn(single, f.seed)[: f.single_domain])
        kept = [e for e in kept if e.user in chosen]
    if f.overlap_ratio < 1:
        found = domains_of(kept)
        several = drawn([user for user, d in found.items() if len(d) > 1], f.seed)
        thinned = several[round(f.overlap_ratio * len(several)) :]
        left = {user: min(found[user], key=lambda d: (-found[user][d], d)) for user in thinned}
        kept = [e for e in kept if left.get(e.user, e.domain) == e.domain]
    if f.max_users is not None:
        chosen = set(drawn({e.user for e in kept}, f.seed)[: f.max_users])
        kept = [e for e in kept if e.user in chosen]
    return kept, set(left)


def named(events):
    """(user, item's id, time, rating) of each event, and the ids of the items in their order.

    The domain stands before all items' ids if one id is in two domains.
    """
    items = sorted({(e.domain, e.item) for e in events})
    twice = len({item for _, item in items}) < len(items)

    def name(domain, item):
        return f"{domain}_{item}" if twice else item

    rows = [(e.user, name(e.domain, e.item), e.time, e.rating) for e in events]
    return rows, [name(*item) for item in items]
