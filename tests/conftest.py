import os
from collections.abc import Callable

import torch
from torch.jit import _builtins

# Without a GPU the kernels run in Triton's interpreter; set before anything imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# What torch.compile kept on disk may stem from another state of the code.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

from unmuddle.testing import strategies

strategies.load_profile("ci" if "CI" in os.environ else None)


def pytest_configure() -> None:
    # `torch.jit.script` recognises a builtin function by its `id` and does not keep the function. An
    # import that replaces one frees the `id` for an object that is then taken for it.
    register, kept = _builtins._register_builtin, list[object]()

    def register_and_keep(function: Callable[..., object], name: str) -> None:
        kept.append(function)
        register(function, name)

    _builtins._register_builtin = register_and_keep
