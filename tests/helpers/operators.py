"""What a piece of code asks of torch, counted rather than timed."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class Operators(TorchDispatchMode):
    """Records the operators called that compute something, and the largest tensor they made."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_free = function.is_view or function in (aten._unsafe_view.default, aten.detach.default)
        if not (is_free or function.namespace == "prim"):
            self.called.append(function.name())
            made = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            self.largest = max([self.largest, *made])
        return result
