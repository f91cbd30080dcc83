"""Golden tests of what papers define exactly: symlog, two-hot, discrete regression."""

from __future__ import annotations

import math

import pytest
import torch

from mbrl_dynamics.models.heads import NormedMLP, TwoHot, cross_entropy, symexp, symlog, two_hot


def test_symlog_is_the_papers_and_symexp_its_inverse():
    x = torch.tensor([-1000.0, -1.0, 0.0, 1e-3, 1.0, math.e - 1.0])
    assert torch.allclose(symlog(x), torch.sign(x) * torch.log(1 + x.abs()), atol=1e-6)
    assert symlog(torch.tensor(math.e - 1.0)) == pytest.approx(1.0)
    assert torch.allclose(symexp(symlog(x)), x, rtol=1e-5)


def test_two_hot_by_hand():
    """2.25 lies between the bins 2 and 3, three quarters of the weight on the nearer one."""
    assert torch.allclose(two_hot(torch.tensor(2.25), 0.0, 4.0, 5), torch.tensor([0.0, 0.0, 0.75, 0.25, 0.0]))
    ends = two_hot(torch.tensor([-9.0, 0.0, 4.0, 9.0]), 0.0, 4.0, 5)
    assert torch.equal(ends.argmax(-1), torch.tensor([0, 0, 4, 4])) and torch.equal(
        ends.sum(-1), torch.ones(4)
    )


def test_cross_entropy_is_torchs():
    logits, target = torch.randn(6, 5), torch.softmax(torch.randn(6, 5), -1)
    expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(cross_entropy(logits, target), expected, atol=1e-6)


def test_discrete_regression_round_trip():
    head, x = TwoHot(), torch.tensor([-500.0, -1.0, 0.0, 0.3, 2.0, 200.0])
    assert torch.allclose(head.decode(head.encode(x).clamp(min=1e-30).log()), x, rtol=1e-4, atol=1e-4)


def test_discrete_regression_learns_any_scale():
    head = TwoHot()
    logits = torch.zeros(3, head.bins, requires_grad=True)
    x = torch.tensor([-0.02, 3.7, 123.0])
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        head.loss(logits, x).sum().backward()
        optimizer.step()
    assert torch.allclose(head.decode(logits.detach()), x, rtol=0.02, atol=0.02)


def test_a_head_that_starts_at_zero_predicts_zero():
    net = NormedMLP(3, (8,), 101, zero=True)
    assert torch.allclose(TwoHot().decode(net(torch.randn(4, 3))), torch.zeros(4), atol=1e-5)
