"""ARM on drawn feature maps: outputs of a sample are its own, whatever the map."""

from functools import partial

import torch
from hypothesis import given
from hypothesis import strategies as st

from unmuddle import ARM
from unmuddle.arm import PublishedARM
from unmuddle.testing import batch_invariance, strategies

MODULES = st.sampled_from([ARM, PublishedARM])


@given(
    x=strategies.feature_maps(n=(4, 6)),
    make=st.sampled_from([ARM, PublishedARM, partial(PublishedARM, affinity="none")]),
    trained=st.booleans(),
)
def test_outputs_do_not_depend_on_the_batch(x, make, trained: bool) -> None:
    arm = make(x.shape[1], tuple(x.shape[2:])).double()
    if trained:
        arm(x)
    assert batch_invariance(arm, x).worst < 1e-12


@given(x=strategies.feature_maps(n=(2, 5)), make=MODULES)
def test_a_training_step_is_finite_and_gives_every_parameter_a_gradient(x, make) -> None:
    arm = make(x.shape[1], tuple(x.shape[2:])).double()
    leaf = x.clone().requires_grad_()
    out = arm(leaf)
    assert out.shape == (len(x), arm.out_features)
    (out * torch.linspace(0, 1, out.numel()).view_as(out)).sum().backward()
    assert leaf.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in arm.parameters())


@given(x=strategies.feature_maps(n=(3, 5)), make=MODULES)
def test_the_order_of_a_training_batch_does_not_matter(x, make) -> None:
    arm = make(x.shape[1], tuple(x.shape[2:])).double()
    order = torch.arange(len(x)).flip(0)
    torch.testing.assert_close(arm(x[order]), arm(x)[order], rtol=1e-9, atol=1e-9)
