"""TEMA and LLM4CDSR, and the parts they share."""
