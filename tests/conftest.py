import os

import torch

# Without a GPU the kernels run in Triton's interpreter; set before anything imports Triton.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
# What torch.compile kept on disk may stem from another state of the code.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

from unmuddle.testing import strategies

strategies.load_profile("ci" if "CI" in os.environ else None)
