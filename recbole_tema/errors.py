"""Errors that a user can cause and mend: the command line prints their line and exits with 2."""


def how_to_get(extra: str) -> str:
    """The command that installs what an extra of this package needs."""
    return f"pip install 'recbole-tema[{extra}]'"


class TemaError(Exception):
    """Base of the expected errors: the message names what was found, where, and what to do."""


class ConfigError(TemaError):
    """A model, dataset, key or value of the configuration is unknown or out of range."""


class DataError(TemaError):
    """A data file is missing, malformed, or contradicts another one."""


class CheckpointError(TemaError):
    """A checkpoint is missing, truncated, foreign, or belongs to another model or dataset."""


class TrainingError(TemaError):
    """Training cannot go on, for example because the loss is no longer finite."""


class EvaluationError(TemaError):
    """A model's scores or an evaluation phase cannot be ranked: NaN, infinite, or no targets."""


class BackendError(TemaError):
    """A language model or its server cannot go on: key refused, endpoint gone, model missing."""
