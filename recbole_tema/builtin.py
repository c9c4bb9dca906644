"""The one door to `dataset_tools`: datasets that are built when a run asks for one."""

from dataset_tools.builtin.datasets import BUILTIN, ensure_builtin

__all__ = ["BUILTIN", "ensure_builtin"]
