"""Find the module in which an export fails, or takes an example's size for the only one.

Torch reports both in hundreds of lines about its own inside. Hooks around each module's `forward`
name the module.
"""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["Watch", "quiet"]


class Watch:
    """Follows which module of `model` runs while it is exported.

    `fixed`: (number of the input, dimension) → the module that made its size a constant.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._running: list[nn.Module] = []
        self._sizes: list[tuple[int, int, Any]] = []  # input, dimension, size
        self.fixed: dict[tuple[int, int], str] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep hooks on every module meanwhile."""
        with ExitStack() as hooks:
            for module in self._names:
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                before = module.register_forward_pre_hook(self._enter, with_kwargs=True)
                after = module.register_forward_hook(self._leave)
                hooks.callback(before.remove)
                hooks.callback(after.remove)
            yield

    @property
    def place(self) -> str:
        """The module that runs, or that failed."""
        return self._describe(self._running[-1]) if self._running else "the model"

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not self._running:
            leaves = pytree.tree_leaves((args, kwargs))
            tensors: list[Any] = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            self._sizes = [
                (place, dimension, size)
                for place, tensor in enumerate(tensors)
                for dimension, size in enumerate(tensor.shape)
                if not isinstance(size, int)
            ]
        self._running.append(module)

    def _leave(self, module: nn.Module, _args: Any, _result: Any) -> None:
        for place, dimension, size in self._sizes:
            if size.node.expr.is_number:
                self.fixed.setdefault((place, dimension), self._describe(module))
        self._running.pop()

    def _describe(self, module: nn.Module) -> str:
        name = self._names.get(module, "")
        return (
            f"{name} ({type(module).__name__})" if name else f"the model's {type(module).__name__}"
        )


def line_of(error: BaseException) -> str:
    """The last line of code outside of torch that `error` came through."""
    line = ""
    current: BaseException | None = error
    while current is not None and not line:
        for frame in traceback.extract_tb(current.__traceback__):
            inside = "/torch/" in frame.filename or "/erless/importers/" in frame.filename
            if not inside:
                line = f"{frame.filename}:{frame.lineno}: {frame.line}"
        current = current.__cause__ or current.__context__
    return line


@contextmanager
def quiet() -> Iterator[None]:
    """Keep torch from printing the graph of an export that fails."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
