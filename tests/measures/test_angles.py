import math

import pytest
import torch

from safehead_tl.measures.angles import principal_angles, require_rank, subspace


def planted_pair(angles, dimensions=12, seed=0):
    """Two subspaces with known principal angles, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    size = (dimensions, dimensions)
    basis, _ = torch.linalg.qr(torch.randn(size, generator=generator, dtype=torch.float64))
    rank = len(angles)
    theta = torch.tensor(angles, dtype=torch.float64)
    first = basis[:, :rank]
    second = first * theta.cos() + basis[:, rank : 2 * rank] * theta.sin()
    mix, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))
    return first, second @ mix


@pytest.mark.parametrize(
    "angles",
    [[1e-9], [1e-4], [0.5], [math.pi / 4], [1.57], [1e-10, 1e-3, 0.3, 0.785, 1.2, math.pi / 2]],
)
def test_planted_angles_are_found_to_all_digits(angles):
    found = principal_angles(*planted_pair(angles))
    assert found.tolist() == pytest.approx(angles, rel=1e-6, abs=1e-15)


def test_an_arccos_would_lose_them():
    first, second = planted_pair([1e-9])
    lost = torch.linalg.svdvals(first.T @ second).clamp(max=1).arccos().item()
    assert abs(lost - 1e-9) > 0.5e-9


def test_stacks_of_subspaces():
    pairs = [planted_pair([0.1, 0.2], seed=seed) for seed in range(3)]
    first = pairs[0][0]
    second = torch.stack([pair[1] for pair in pairs])
    found = principal_angles(first, second)
    assert found.shape == (3, 2)
    assert torch.allclose(found[1], principal_angles(first, second[1]))


def test_left_vectors_are_those_of_the_outer_product():
    states = torch.randn(6, 20, generator=torch.Generator().manual_seed(0))
    left = subspace(states, 2, centre=False)
    outer = states.double() @ states.double().T
    assert torch.allclose(outer @ left, left * (left.T @ outer @ left).diagonal(), atol=1e-8)
    centred = subspace(states, 2, centre=True)
    assert torch.allclose(centred.sum(0), torch.zeros(2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize(("prompts", "centre", "largest"), [(4, False, 3), (4, True, 2)])
def test_the_angle_is_always_zero_from_the_refused_rank_on(prompts, centre, largest):
    require_rank(largest, prompts, centre)
    with pytest.raises(ValueError, match=f"Use a rank from 1 to {largest}"):
        require_rank(largest + 1, prompts, centre)
    generator = torch.Generator().manual_seed(0)
    stacks = [torch.randn(prompts, 9, generator=generator) for _ in range(2)]

    def angle(rank):
        first, second = (subspace(stack, rank, centre) for stack in stacks)
        return principal_angles(first, second).sum().item()

    assert angle(largest) > 0.1
    assert angle(largest + 1) == pytest.approx(0, abs=1e-6)
