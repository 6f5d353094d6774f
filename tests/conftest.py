import os

# The kernels run on this machine in Triton's interpreter; set before anything imports Triton.
os.environ["TRITON_INTERPRET"] = "1"

from hypothesis import settings

settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=200, deadline=None, derandomize=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if "CI" in os.environ else "dev"))
