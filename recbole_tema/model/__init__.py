"""TEMA and LLM4CDSR, and the parts they share."""

import recbole_tema.compat  # noqa: F401  before RecBole
