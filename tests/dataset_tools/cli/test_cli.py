"""The command line `python -m dataset_tools`: help, wrong arguments, what never starts."""

import re

import pytest
from click.testing import CliRunner

from dataset_tools.__main__ import main
from dataset_tools.cli import options as shared
from dataset_tools.llm.answers import AnswerStore
from tests.support.word_backend import NAME, WordBackend, write_shop

COMMANDS = ("build", "tag", "augment", "embed", "profile", "clip", "enrich", "merge")
OF_A_MODEL = ("tag", "augment", "embed", "profile", "enrich")
KEY = "sk-secret-0123456789"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A data path with the shop; no key in the environment."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    write_shop(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refused(*arguments):
    """The one line with which a command refuses its arguments."""
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    return done.stderr


def test_the_help_names_every_command():
    done = run("--help")
    assert done.exit_code == 0
    assert set(re.findall(r"^  (\w+)  ", done.stdout, re.M)) >= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_with_examples_that_are_right(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    examples = done.stdout.partition("Examples:\n")[2].replace("\\\n", " ")
    lines = [line.split() for line in examples.splitlines() if line.strip()]
    assert lines and all(line[:4] == ["python", "-m", "dataset_tools", command] for line in lines)
    for line in lines:
        words = [word for word in line[4:] if word not in ("--images", "./photos")]
        main.get_command(None, command).make_context(command, words)


@pytest.mark.parametrize("command", OF_A_MODEL)
def test_every_command_of_a_model_has_its_options(command):
    text = run(command, "--help").stdout
    for option in ("--backend", "--part", "--dry-run", "--price_in", "--prompts", "--force"):
        assert option in text


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["tga"], "No such command 'tga'"),
        (["tag"], "Missing argument 'NAME'"),
        (["tag", NAME, "--tops", "3"], "--tops"),
        (["tag", NAME, "--limit", "0"], "'--limit': 0 is not in the range"),
        (["tag", NAME, "--limit", "many"], "'many' is not a valid integer"),
        (["tag", NAME, "--max_share", "0"], "--max_share"),
        (["tag", NAME, "--backend", "cloud"], "'cloud' is not one of"),
        (["profile", NAME, "--clusters", "0"], "--clusters"),
        (["clip", NAME, "--images", "no-such-folder"], "no-such-folder"),
        (["--verbos"], "--verbos"),
    ],
)
def test_wrong_arguments(root, words, says):
    assert says in refused(*words)


@pytest.mark.parametrize("part", ["5/4", "0/4", "4", "a/b", "1/0", "-1/4", "1/2/3", "", "1.5/2"])
def test_parts(root, part):
    assert "is not of the form i/n" in refused("tag", NAME, "--part", part)


@pytest.mark.parametrize(
    ("command", "what"), [("embed", "vectors"), ("augment", "augmented texts")]
)
def test_parts_store_answers_and_the_whole_run_writes_the_dataset(root, backend, command, what):
    before, n = snapshot(root / NAME), 0
    for part in ("1/2", "2/2"):
        done = run(command, NAME, "--data_path", root, "--part", part)
        assert done.exit_code == 0, done.output
        assert f"{command}: part {part} is done" in done.stdout and "merge NAME" in done.stdout
        assert re.search(
            rf"^{command}: 104 requests: 0 answered .* not asked yet", done.stdout, re.M
        )
        assert n < len(backend.asked) <= 104
        n = len(backend.asked)
    done = run("merge", NAME, "--data_path", root)
    assert done.exit_code == 0 and "104 answers\n" in done.stdout
    done = run(command, NAME, "--data_path", root, "--part", "2/2")
    assert "every answer is there; run this again without --part" in done.stdout
    assert snapshot(root / NAME) == before and len(backend.asked) == n
    done = run(command, NAME, "--data_path", root)
    assert f"104 of 104 items have {what}" in done.stdout and len(backend.asked) == n == 104


@pytest.mark.parametrize("command", COMMANDS)
def test_unknown_dataset(root, command):
    line = refused(command, "shopp", "--data_path", root)
    assert "shopp" in line


@pytest.mark.parametrize("name", ["../shop", "/etc", ".", "a b/c", ""])
def test_a_name_that_is_no_name(root, name):
    refused("tag", name, "--data_path", root)


@pytest.mark.parametrize("command", OF_A_MODEL)
def test_options_that_do_not_go_together(root, command):
    where = ("--data_path", root)
    assert "needs --model" in refused(command, NAME, *where, "--backend", "openai")
    url = ("--base_url", "http://localhost:1/v1")
    assert "--base_url is of --backend openai" in refused(command, NAME, *where, *url)
    none = root / "none"
    assert "no such folder of prompts" in refused(command, NAME, *where, "--prompts", none)


def test_a_missing_key_and_a_key_in_no_message(root, monkeypatch):
    where = ("--data_path", root, "--backend", "openai", "--model", "m")
    assert "OPENAI_API_KEY" in refused("tag", NAME, *where, "--base_url", "https://example.org/v1")
    monkeypatch.setenv("MY_KEY", KEY)
    done = run("tag", NAME, *where, "--key_variable", "MY_KEY", "--base_url", "ftp://x")
    assert done.exit_code == 2 and KEY not in done.output


def test_a_wrong_prompt_file_ends_before_the_model_is_loaded(root, monkeypatch):
    monkeypatch.setattr(shared, "make_backend", lambda llm: pytest.fail("loaded"))
    (root / "tag.yaml").write_text("max_tokens: many")
    assert "tag.yaml" in refused("tag", NAME, "--data_path", root, "--prompts", root)


@pytest.fixture
def backend(monkeypatch):
    """The commands' model is one whose answers are known."""
    made = WordBackend(True)
    monkeypatch.setattr(shared, "make_backend", lambda llm: made)
    return made


def snapshot(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize("command", OF_A_MODEL)
def test_dry_run_asks_and_writes_nothing(root, backend, command):
    pytest.importorskip("transformers", reason="pip install 'recbole-tema[features]'")
    before = snapshot(root / NAME)
    prices = ("--price_in", "0.5", "--price_out", "2")
    done = run(command, NAME, "--data_path", root, "--dry-run", *prices)
    assert done.exit_code == 0, done.output
    assert not backend.asked and snapshot(root / NAME) == before
    if command != "profile":  # which item vectors come before
        assert re.search(r"calls: 104 \(104 of 104 requests are to be asked\)", done.stdout)
        assert "tokens in: about" in done.stdout and "cost: at most about" in done.stdout


def test_embed_twice(root, backend):
    done = run("embed", NAME, "--data_path", root, "--pca", "3")
    assert done.exit_code == 0, done.output
    assert (
        "embed: 104 requests: 0 answered from the store, 104 by the model, 0 without" in done.stdout
    )
    assert "104 of 104 items have vectors of 3 numbers" in done.stdout
    n = len(backend.asked)
    again = run("embed", NAME, "--data_path", root, "--pca", "3", "--force")
    assert "104 answered from the store, 0 by the model" in again.stdout and len(backend.asked) == n
    assert "has item vectors: language model" in run("embed", NAME, "--data_path", root).stdout
    line = refused_after(root, "--pca", "65", "--force")
    assert "--pca 65" in line


def refused_after(root, *words):
    done = run("embed", NAME, "--data_path", root, *words)
    assert done.exit_code == 2
    return done.stderr


def test_answers_go_to_the_named_folder(root, backend, tmp_path):
    folder = tmp_path / "kept"
    assert run("embed", NAME, "--data_path", root, "--answers", folder).exit_code == 0
    assert not (root / NAME / shared.STORE).exists() and folder.is_dir()
    # Another process holds this part of the work.
    with AnswerStore(folder, (1, 1)) as store:
        store.prepare()
        done = run("embed", NAME, "--data_path", root, "--answers", folder, "--force")
    assert done.exit_code == 2 and "Traceback" not in done.output


def test_ctrl_c_is_one_line_and_code_130(root, backend, monkeypatch):
    def stop(units):
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(backend, "answer", stop)
    done = run("embed", NAME, "--data_path", root)
    assert done.exit_code == shared.INTERRUPTED == 130
    assert "the same command goes on from here" in done.stderr


def test_profile_after_embed(root, backend):
    assert run("embed", NAME, "--data_path", root).exit_code == 0
    words = ("--text_encoder", "llm", "--clusters", "4", "--limit", "5")
    done = run("profile", NAME, "--data_path", root, *words)
    assert (
        done.exit_code == 0
        and "5 of 30 users have profiles; the others: 25 beyond --limit" in done.stdout
    )
    assert re.search(r"^part: \d+ requests", done.stdout, re.M)
