"""Checks of the keys of the evaluation: how events are split, what is ranked, what is measured."""

import re
from typing import Any

from recbole_tema.config.rules import (
    EVAL_ARGS,
    GROUPS,
    ITEM_METRICS,
    UNCUT_METRICS,
    check_parts,
    fail,
)
from recbole_tema.data.split import read_rule
from recbole_tema.errors import ConfigError


def check_eval_args(value: Any, sources: dict[str, str]) -> None:
    """Check ``eval_args``: the split, its order, and the candidates of each phase.

    Raises:
        ConfigError: names the part, its value, where it came from and what is allowed.
    """
    check_parts("eval_args", value, EVAL_ARGS, sources)
    try:
        read_rule(value.get("split"))
    except ValueError as error:
        fail("eval_args.split", value["split"], str(error), sources)
    if value.get("order", "TO") != "TO":
        fail("eval_args.order", value["order"], "TO, by time", sources)
    if value.get("group_by") not in ("user", "none", None):
        fail("eval_args.group_by", value["group_by"], "user or none", sources)
    mode = value.get("mode", "full")
    if isinstance(mode, dict):
        check_parts("eval_args.mode", mode, ("valid", "test"), sources)
    for phase, one in (mode if isinstance(mode, dict) else {"": mode}).items():
        if not isinstance(one, str) or not re.fullmatch(r"full|uni[1-9]\d*", one):
            name = f"eval_args.mode.{phase}".rstrip(".")
            fail(name, one, "full, or uniN for N negatives as uni100", sources)


def check_valid_metric(values: dict[str, Any], sources: dict[str, str]) -> None:
    """Check ``valid_metric`` as far as it goes without data, which tell the domains.

    Raises:
        ConfigError: it is no metric that is computed, or of a group that is not.
    """
    uncut = list(values.get("uncut_metrics") or ())
    offered = [f"{metric}@{k}" for metric in values["metrics"] for k in values["topk"]] + uncut
    chosen = values["valid_metric"]
    part, _, metric = str(chosen).rpartition("/")
    if part:  # metrics on the recommended items as a whole are given overall alone
        offered = [name for name in offered if name.lower().partition("@")[0] not in ITEM_METRICS]
    if isinstance(chosen, str) and metric.lower() in [name.lower() for name in offered]:
        grouping = part.partition("=")[0] if "=" in part else None
        if grouping is not None and grouping not in values.get("eval_groups", ()):
            wanted = f"a slice that is evaluated: add {grouping} to eval_groups"
            wanted = wanted if grouping in GROUPS else f"a group of {', '.join(GROUPS)}"
            fail("valid_metric", chosen, wanted, sources)
        return
    if isinstance(chosen, str) and metric.lower() in UNCUT_METRICS:
        wanted = f"a metric that is computed: add {metric} to uncut_metrics"
        fail("valid_metric", chosen, wanted, sources)
    changed = [f"{key} ({sources[key]})" for key in ("metrics", "topk") if key in sources]
    if "valid_metric" not in sources and changed:
        raise ConfigError(
            f"valid_metric is {chosen!r} by default, which {' and '.join(changed)} leaves out; "
            f"set valid_metric to one of {', '.join(offered)}"
        )
    wanted = f"a pair of metrics and topk, or one of uncut_metrics: {', '.join(offered)}"
    wanted += "; before it SLICE/, as macro/" if not part else ""
    fail("valid_metric", chosen, wanted, sources)
