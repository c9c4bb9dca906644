"""RecBole's models with less work a step: the same losses, scores and parameters."""

import recbole_tema.compat  # noqa: F401  before RecBole
