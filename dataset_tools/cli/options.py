"""Options that several commands share, and what they open: dataset, model, store."""

import functools
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from recbole_tema.errors import ConfigError, TemaError
from recbole_tema.paths import DATA_VARIABLE, default_data_path

STORE = "llm-answers"  # folder of kept answers, beside the dataset's files
INTERRUPTED = 130
# What a dry run that stops at a task cannot count, because it depends on that task's answers.
ROUNDS = "the rounds of refinement (same and probe, or refine, and more_tags) and match"
LATER = {
    "tag": ROUNDS,
    **dict.fromkeys(("same", "probe", "refine", "more_tags"), f"the rest of {ROUNDS}"),
    "part": "profile, and embed with --text_encoder llm",
    "profile": "embed with --text_encoder llm",
}

data_path_option = click.option(
    "--data_path",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Folder of all datasets.  [default: ${DATA_VARIABLE}, else the user's cache folder]",
)
encoder_option = click.option(
    "--text_encoder",
    default="minilm",
    show_default=True,
    help="minilm (packaged), clip:FOLDER, open_clip:MODEL:WEIGHTS or sentence:FOLDER.",
)
force_option = click.option(
    "--force",
    is_flag=True,
    help="Make it again, whoever made what is there; kept answers are used.",
)


class Part(click.ParamType):
    """`i/n`, part i of n: 2/4."""

    name = "i/n"

    def convert(self, value, param, ctx) -> tuple[int, int]:
        """(i, n) with 1 <= i <= n."""
        if isinstance(value, tuple):
            return value
        index, slash, total = value.partition("/")
        if slash and index.isdecimal() and total.isdecimal() and 1 <= int(index) <= int(total):
            return int(index), int(total)
        self.fail(f"{value!r} is not of the form i/n with 1 <= i <= n, such as 2/4", param, ctx)


MODEL_OPTIONS = [
    click.option(
        "--backend",
        type=click.Choice(["local", "openai"]),
        default="local",
        show_default=True,
        help="A model on this machine, or any server with OpenAI's interface.",
    ),
    click.option(
        "--model",
        help="local: a folder of Hugging Face files or a GGUF file; openai: the model's name. "
        "[default: local: the packaged SmolLM2-135M-Instruct]",
    ),
    click.option(
        "--base_url", help="openai: address of the server, e.g. http://localhost:11434/v1."
    ),
    click.option(
        "--key_variable",
        default="OPENAI_API_KEY",
        show_default=True,
        help="openai: environment variable that holds the key.",
    ),
    click.option(
        "--embedding_model", help="openai: model of the embeddings, if not that of the answers."
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 1024),
        default=16,
        show_default=True,
        help="openai: questions under way at a time.",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(0, min_open=True),
        default=60.0,
        show_default=True,
        help="openai: seconds for one answer, from the question to its last byte.",
    ),
    click.option(
        "--max_tokens",
        type=click.IntRange(1),
        default=1000,
        show_default=True,
        help="openai: longest answer, thinking included, where the prompt file allows no more: "
        "a bound of the cost. Some models that think need more.",
    ),
    click.option(
        "--json_output",
        type=click.Choice(["auto", "schema", "object", "text"]),
        default="auto",
        show_default=True,
        help="openai: how JSON is asked for; auto: the first of the others that is not refused.",
    ),
    click.option("--device", default="auto", show_default=True, help="local: cpu, cuda or auto."),
    click.option(
        "--dtype",
        type=click.Choice(["float32", "bfloat16", "float16"]),
        default="float32",
        show_default=True,
        help="local: number format of the model.",
    ),
    click.option(
        "--batch_size",
        type=click.IntRange(1),
        help="local: questions answered together.  [default: the backend's]",
    ),
    click.option(
        "--max_context",
        type=click.IntRange(64),
        help="local: longest prompt with its answer, in tokens; a longer text loses its end, and "
        "another number asks all anew.  [default: 1024]",
    ),
    click.option(
        "--prompts",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of your own prompt files; those of dataset_tools/prompts stand in for others.",
    ),
    click.option(
        "--answers",
        type=click.Path(file_okay=False, path_type=Path),
        help=f"Folder where answers are kept.  [default: {STORE} in the dataset's folder]",
    ),
    click.option(
        "--retry_failed",
        is_flag=True,
        help="Ask again what lastingly failed: held back by a filter, refused, cut off, empty. "
        "What failed in passing is asked again anyway.",
    ),
    click.option(
        "--part",
        type=Part(),
        default="1/1",
        show_default=True,
        help="Ask part i of n only, into a file of its own, and write nothing else; `merge` joins "
        "the parts, which may be of several machines.",
    ),
    click.option(
        "--dry-run",
        "dry_run",
        is_flag=True,
        help="Ask nothing; print calls, tokens and, given prices, the cost.",
    ),
    click.option("--price_in", type=float, help="Price of a million tokens in, for --dry-run."),
    click.option("--price_out", type=float, help="Price of a million tokens out, for --dry-run."),
]


def option_names(options: list[Callable]) -> list[str]:
    """Names of the arguments that click options become."""
    return [option(lambda: None).__click_params__[0].name for option in options]


def gathered(command: Callable, options: list[Callable], into: str) -> Callable:
    """`command` with `options`, which it gets as one dict, the argument `into`."""
    names = option_names(options)

    @functools.wraps(command)
    def wrapped(**values: Any):
        chosen = {name: values.pop(name) for name in names}
        return command(**values, **{into: chosen})

    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped


def model_options(command: Callable) -> Callable:
    """Add the options of the language model; the command gets them as the dict `llm`."""
    return gathered(command, MODEL_OPTIONS, "llm")


def one_line_errors(command: Callable) -> Callable:
    """End on an expected error with one line and exit code 2, on Ctrl-C with code 130."""

    @functools.wraps(command)
    def guarded(*args, **kwargs):
        # As Ctrl-C: what is half-made is cleared away.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            return command(*args, **kwargs)
        except TemaError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            left = str(stop) or "the same command goes on from here"
            click.echo(f"interrupted; {left}", err=True)
            sys.exit(INTERRUPTED)
        finally:
            signal.signal(signal.SIGTERM, before)

    return guarded


def open_dataset(name: str, data_path: Path | None):
    """The dataset NAME, built first if it is a built-in one that is not there.

    Raises:
        DataError: see `read_dataset`.
    """
    from dataset_tools.builtin.datasets import BUILTIN, ensure_builtin
    from dataset_tools.dataset.dataset import read_dataset

    root = Path(data_path or default_data_path()).expanduser()
    folder = root / name
    if name in BUILTIN:
        folder = ensure_builtin(name, root)
    return read_dataset(folder, name)


@contextmanager
def open_session(dataset, llm: dict[str, Any]) -> Iterator:
    """The session of a command: backend and store from its options.

    Raises:
        ConfigError: options that do not go together.
        BackendError: the model is missing or cannot be had.
        DataError: a prompt file is wrong, or the store cannot be opened.
        SystemExit: a part of a run is done; what comes next was printed.
    """
    from dataset_tools.llm.answers import AnswerStore
    from dataset_tools.llm.asking import PartDone
    from dataset_tools.llm.prompts import check_prompts
    from dataset_tools.llm.session import Session

    check_prompts(llm["prompts"])
    backend = make_backend(llm)
    folder = llm["answers"] or dataset.folder / STORE
    keys = {"readonly": llm["dry_run"], "retry_failed": llm["retry_failed"]}
    with AnswerStore(folder, llm["part"], **keys) as store:
        session = Session(
            backend,
            store,
            llm["prompts"],
            prices=(llm["price_in"], llm["price_out"]),
            dry=llm["dry_run"] or llm["part"] != (1, 1),
        )
        try:
            yield session
        except PartDone as done:
            for task, tally in session.tallies.items():
                click.echo(f"{task}: {tally}")
            click.echo(done)
            sys.exit(0)


def make_backend(llm: dict[str, Any]):
    """The backend that the options name."""
    if llm["backend"] == "openai":
        if not llm["model"]:
            raise ConfigError("--backend openai needs --model, the name that the server knows")
        from dataset_tools.llm.openai_api import OpenAIBackend

        return OpenAIBackend(
            llm["model"],
            llm["base_url"],
            key_variable=llm["key_variable"],
            embedding_model=llm["embedding_model"],
            concurrency=llm["concurrency"],
            timeout_s=llm["timeout"],
            max_tokens=llm["max_tokens"],
            json_output=llm["json_output"],
            dry=llm["dry_run"],
        )
    if llm["base_url"]:
        raise ConfigError("--base_url is of --backend openai; add that, or leave the address out")
    from dataset_tools.llm.local import LocalBackend

    sizes = {name: llm[name] for name in ("batch_size", "max_context") if llm[name]}
    return LocalBackend(llm["model"], device=llm["device"], dtype=llm["dtype"], **sizes)


def finish(session, dry_run: bool) -> None:
    """Print what the questions added up to, or would."""
    if dry_run:
        for task, found in session.estimates.items():
            click.echo(f"{task}:\n{found}")
        later = [LATER[task] for task in session.stopped if task in LATER]
        if later:
            counted = ", ".join(session.estimates)
            click.echo(f"counted: {counted}. Not counted: {'; '.join(later)}")
        return
    for task, tally in session.tallies.items():
        click.echo(f"{task}: {tally}")
    if session.dry and session.tallies:
        click.echo("every answer is there; run this again without --part to write the dataset")
