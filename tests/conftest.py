import os

# The kernels run on this machine in Triton's interpreter; set before anything imports Triton.
os.environ["TRITON_INTERPRET"] = "1"
# What torch.compile kept on disk may stem from another state of the code.
os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"

from unmuddle.testing import strategies

strategies.load_profile("ci" if "CI" in os.environ else None)
