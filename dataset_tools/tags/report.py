"""The report of a tagging run: what the list was and became, and what the items have."""

from collections import Counter
from collections.abc import Sequence

from tabulate import tabulate

from dataset_tools.dataset.dataset import Dataset
from dataset_tools.tags.pipeline import Tagged

SHOWN_TAGS, SHOWN_ITEMS = 20, 10


def report(dataset: Dataset, tagged: Tagged, made_by: str) -> str:
    """NAME.tags.md: list sizes, shared tags, coverage, extremes, refused answers, examples."""
    used = Counter(tag for row in tagged.rows for tag in row)
    domains = dataset.column("domain")
    by_domain: dict[str, Counter[str]] = {d: Counter() for d in sorted(set(domains))}
    for domain, row in zip(domains, tagged.rows, strict=True):
        by_domain[domain].update(row)
    shared = sum(sum(tag in c for c in by_domain.values()) > 1 for tag in used)
    parts = [
        f"# Tags of {dataset.name}\n\nMade by {made_by}.",
        "## The list\n\n"
        + _table(["after", "tags", "in more than one domain"], tagged.sizes)
        + f"\n\nTags that items have at the end: {len(used)}, of which {shared} in more than one "
        f"domain. Tags on the list that fit no item: {tagged.stages['tags that fit no item']}.",
        "## Coverage\n\n" + _coverage(dataset, tagged),
        "## Refused of the model's answers\n\n"
        + _table(["reason", "times", "of"], _refused(tagged.raw.refused)),
        f"## Most and least used\n\n{_extremes(used)}",
        f"## {SHOWN_ITEMS} items\n\n{_examples(dataset, tagged)}",
    ]
    return "\n\n".join(parts) + "\n"


def edit_log(tagged: Tagged) -> str:
    """NAME.tag-edits.tsv: every merge, drop and addition, in order."""
    head = ("when", "edit", "tag", "into", "why")
    return "".join("\t".join(row) + "\n" for row in [head, *tagged.tags.log])


def _table(heads: Sequence[str], rows: Sequence) -> str:
    return tabulate(rows, headers=heads, tablefmt="github")


def _refused(refused: Counter) -> list[tuple[str, int, str]]:
    """(reason, how often, what was refused), the most frequent first."""
    return [
        (reason, count, "answers" if reason.startswith(("no answer", "an answer")) else "tags")
        for reason, count in refused.most_common()
    ]


def _coverage(dataset: Dataset, tagged: Tagged) -> str:
    domains = dataset.column("domain")
    rows = []
    for domain in [*sorted(set(domains)), "all"]:
        mine = [r for d, r in zip(domains, tagged.rows, strict=True) if domain in (d, "all")]
        with_tags = [row for row in mine if row]
        mean = sum(map(len, with_tags)) / max(1, len(with_tags))
        share = len(with_tags) / len(mine)
        rows.append((domain, len(mine), f"{share:.1%}", f"{mean:.2f}"))
    table = _table(["domain", "items", "with tags", "tags of such an item"], rows)
    return f"{table}\n\nItems without a title, of which nothing was asked: {tagged.raw.silent}."


def _extremes(used: Counter) -> str:
    ranked = sorted(used.items(), key=lambda pair: (-pair[1], pair[0]))
    most = ", ".join(f"{tag} ({count})" for tag, count in ranked[:SHOWN_TAGS])
    least = ", ".join(f"{tag} ({count})" for tag, count in ranked[-SHOWN_TAGS:])
    return f"Most: {most}\n\nLeast: {least}"


def _examples(dataset: Dataset, tagged: Tagged) -> str:
    """Items spread evenly over the file, so that all domains show."""
    step = max(1, len(tagged.rows) // SHOWN_ITEMS)
    domains, titles = dataset.column("domain"), dataset.column("title")
    rows = []
    for row in list(range(0, len(tagged.rows), step))[:SHOWN_ITEMS]:
        pairs = zip(tagged.rows[row], tagged.weights[row], strict=True)
        tags = ", ".join(f"{tag} {weight:.2f}" for tag, weight in pairs)
        rows.append((domains[row], titles[row].replace("|", "/"), tags))
    return _table(["domain", "title", "tags and weights"], rows)
