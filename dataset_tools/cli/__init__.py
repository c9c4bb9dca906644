"""The command line of `python -m dataset_tools`: one module a command."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from dataset_tools.cli.augment import augment
from dataset_tools.cli.build import build
from dataset_tools.cli.clip import clip
from dataset_tools.cli.convert import convert
from dataset_tools.cli.describe import describe
from dataset_tools.cli.embed import embed
from dataset_tools.cli.enrich import enrich
from dataset_tools.cli.merge import merge
from dataset_tools.cli.profile import profile
from dataset_tools.cli.tag import tag


class OneLineGroup(click.Group):
    """Says what is wrong with the arguments in one line, as every other error is said."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        """As click's, for the options before the command."""
        with _one_line(info_name):
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """As click's, for the command and its arguments."""
        with _one_line(ctx.command_path):
            return super().invoke(ctx)


@contextmanager
def _one_line(program: str | None) -> Iterator[None]:
    try:
        yield
    except click.exceptions.UsageError as error:
        if isinstance(error, getattr(click.exceptions, "NoArgsIsHelpError", ())):
            raise  # click shows the help
        text = " ".join(error.format_message().split())
        path = error.ctx.command_path if error.ctx else program
        click.echo(f"error: {text} (see {path} --help)", err=True)
        sys.exit(error.exit_code)


@click.group(cls=OneLineGroup, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Make datasets of RecBole atomic files, with the features that TEMA and LLM4CDSR use.

    \b
    build    a built-in dataset
    convert  raw data into a dataset
    describe what a dataset holds, and checks of it
    enrich   everything that a dataset lacks: tag, embed, profile, clip
    augment  what a language model says of each item, for clip
    merge    the answers of a language model that parts of a run have stored
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr, force=True)
    for chatty in ("httpx", "httpx2", "openai", "urllib3", "PIL"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


for command in (build, convert, describe, tag, augment, embed, profile, clip, enrich, merge):
    main.add_command(command)
