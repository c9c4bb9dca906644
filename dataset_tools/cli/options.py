"""Options that several commands share, and what they open: dataset, model, store."""

import functools
import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from dataset_tools.options import STORE, ModelOptions
from recbole_tema.errors import ConfigError, TemaError
from recbole_tema.paths import DATA_VARIABLE, default_data_path

if TYPE_CHECKING:
    from dataset_tools.dataset.dataset import Dataset
    from dataset_tools.llm.requests import Backend
    from dataset_tools.llm.session import Session

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

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """(i, n) with 1 <= i <= n."""
        if isinstance(value, tuple):
            return value
        index, slash, total = value.partition("/")
        if slash and index.isdecimal() and total.isdecimal() and 1 <= int(index) <= int(total):
            return int(index), int(total)
        self.fail(f"{value!r} is not of the form i/n with 1 <= i <= n, such as 2/4", param, ctx)


class Parsed(click.ParamType):
    """What a function makes of a text; its ValueError says what is wrong with it."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The value; one that was converted before as it is."""
        if isinstance(value, tuple):
            return value
        try:
            return self.parse(str(value))  # YAML makes dates of dates
        except ValueError as error:
            self.fail(str(error), param, ctx)


def finite(text: str) -> float:
    """A finite number."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"{text!r} is no finite number")
    return found


class Finite(click.FloatRange):
    """A number within a range: click's lets nan through."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        return Parsed("float", finite).convert(super().convert(value, param, ctx), param, ctx)


def options_of(kind: type, **types: click.ParamType) -> list[Callable]:
    """The options that the fields of a dataclass are; those named in `types` are of these types."""
    hints = get_type_hints(kind)
    return [
        _option(f, hints[f.name], types.get(f.name)) for f in fields(kind) if "help" in f.metadata
    ]


def _option(field: Field, hint: Any, kind: click.ParamType | None) -> Callable:
    if get_origin(hint) in (Union, UnionType):
        hint = next(part for part in get_args(hint) if part is not NoneType)
    more: dict[str, Any] = {"is_flag": True}
    if hint is not bool:
        more = {"type": kind or _type_of(hint, field.metadata), "show_default": True}
    flag, text = field.metadata.get("flag", f"--{field.name}"), field.metadata["help"]
    return click.option(flag, field.name, default=field.default, help=text, **more)


def _type_of(hint: Any, shape: Mapping[str, Any]) -> click.ParamType | None:
    """The type of an option by the hint and the bounds of its field; None: a text."""
    least, most = shape.get("least", shape.get("above")), shape.get("most")
    if get_origin(hint) is Literal:
        return click.Choice(get_args(hint))
    if hint is Path:
        return click.Path(exists=shape.get("exists", False), file_okay=False, path_type=Path)
    if hint is float and least is not None:
        return Finite(least, most, min_open="above" in shape)
    if hint is float:
        return Parsed("float", finite)
    if hint is int:
        return click.INT if least is None else click.IntRange(least, most)
    return None


MODEL_OPTIONS = [
    *options_of(ModelOptions),
    click.option(
        "--part",
        type=Part(),
        default="1/1",
        show_default=True,
        help="Ask part i of n only, into a file of its own, and write nothing else; `merge` joins "
        "the parts, which may be of several machines.",
    ),
]


def names_of(options: Iterable[Callable]) -> list[str]:
    """Names of the arguments that options become."""
    return [option(lambda: None).__click_params__[0].name for option in options]


def with_options(command: Callable, options: Iterable[Callable]) -> Callable:
    """`command` with options and arguments, in their order in the help."""
    for option in reversed(list(options)):
        command = option(command)
    return command


def one_line_errors(command: Callable) -> Callable:
    """End on an expected error with one line and exit code 2, on Ctrl-C with code 130."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> Any:
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


def enriching(epilog: str, *options: Callable, model: bool = True) -> Callable:
    """Make a command `NAME` of a function of the dataset, with `model` also of the session, and of
    `force` and the `options` by name; what it returns is printed."""

    def command_of(work: Callable) -> click.Command:
        def command(name: str, data_path: Path | None, **values: Any) -> None:
            llm = {option: values.pop(option) for option in asked}
            dataset = open_dataset(name, data_path)
            if not model:
                click.echo(work(dataset, **values))
                return
            with open_session(dataset, llm) as session:
                done = work(dataset, session, **values)
                finish(session, llm["dry_run"])
            click.echo(done)

        command = one_line_errors(functools.update_wrapper(command, work))
        given = (click.argument("name"), data_path_option, force_option, *options)
        command = with_options(command, (*given, *(MODEL_OPTIONS if model else ())))
        return click.command(epilog=epilog)(command)

    asked = names_of(MODEL_OPTIONS) if model else []
    return command_of


def dataset_folder(name: str, data_path: Path | None) -> Path:
    """The folder of dataset NAME, built first if it is a built-in one that is not there."""
    from dataset_tools.builtin.datasets import BUILTIN, ensure_builtin

    root = Path(data_path or default_data_path()).expanduser()
    return ensure_builtin(name, root) if name in BUILTIN else root / name


def open_dataset(name: str, data_path: Path | None) -> "Dataset":
    """The dataset NAME, see `dataset_folder`.

    Raises:
        DataError: see `read_dataset`.
    """
    from dataset_tools.dataset.dataset import read_dataset

    return read_dataset(dataset_folder(name, data_path), name)


@contextmanager
def open_session(dataset: "Dataset", llm: dict[str, Any]) -> Iterator["Session"]:
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


def make_backend(llm: dict[str, Any]) -> "Backend":
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


def finish(session: "Session", dry_run: bool) -> None:
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
