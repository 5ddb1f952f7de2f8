"""Muon: directions with all singular values near one, and a step that survives a checkpoint."""

from __future__ import annotations

import torch

from mmedge.distill.muon import Muon, orthogonalize


def test_singular_values_are_brought_near_one_and_vectors_kept() -> None:
    torch.manual_seed(0)
    for shape in ((3, 24, 24), (2, 40, 16), (2, 16, 40)):
        matrices = torch.randn(shape)
        found = orthogonalize(matrices)
        values = torch.linalg.svdvals(found)
        assert found.shape == matrices.shape
        assert values.median() > 0.6 and values.max() < 1.3
        u, _, v = torch.linalg.svd(matrices, full_matrices=False)
        core = u.mT @ found @ v.mT  # diagonal where the singular vectors are the same
        off = core - torch.diag_embed(torch.diagonal(core, dim1=1, dim2=2))
        assert off.abs().max() < 0.05


def test_it_minimizes_and_resumes_from_its_state() -> None:
    torch.manual_seed(0)
    target = torch.randn(16, 16)

    def train(weight: torch.nn.Parameter, optimizer: Muon, steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (weight - target).square().mean()
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    whole = torch.nn.Parameter(torch.zeros(16, 16))
    first = train(whole, Muon([whole], lr=0.02), 1)
    whole.data.zero_()
    assert train(whole, Muon([whole], lr=0.02), 200) < 0.3 * first
    cut = torch.nn.Parameter(torch.zeros(16, 16))
    before = Muon([cut], lr=0.02)
    train(cut, before, 120)
    after = Muon([cut], lr=0.02)
    after.state[cut]["momentum"] = before.state[cut]["momentum"].clone()
    train(cut, after, 80)
    assert torch.equal(cut, whole)
