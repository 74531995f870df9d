"""What annotations say is enforced in all other tests: types everywhere, and sizes that have a name."""

from collections.abc import Iterator

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from duolora.paper.lowrank import LowRank, gated
from duolora.paper.ziprank import masked
from duolora.provenance import file_hash
from typechecker import Finder, checked

UP, DOWN = torch.ones(4, 2), torch.ones(2, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: file_hash(3),
        lambda: LowRank(UP, DOWN, "1"),
        lambda: LowRank(UP, [1.0]),
        lambda: LowRank(UP[0], DOWN),
        lambda: masked(LowRank(UP, DOWN), torch.ones(1, 2)),
        lambda: gated(torch.ones(2, 5, 3), torch.ones(2, 4)),
    ],
    ids=["a type", "a field", "a tensor", "its axes", "an argument's axes", "a size of two arguments"],
)
def test_what_an_annotation_forbids_is_an_error(call):
    with pytest.raises(BeartypeCallHintViolation):
        call()


def test_a_size_is_the_same_in_what_is_returned_and_another_in_the_next_call():
    def first(x: Float[Tensor, "n k"], rows: int) -> Float[Tensor, "n k"]:
        return x[:rows]

    found = checked(first)
    assert found(UP, 4).shape == (4, 2) and found(DOWN, 2).shape == (2, 3)
    with pytest.raises(BeartypeCallHintViolation):
        found(UP, 3)


def test_a_generator_has_sizes_of_its_own():
    def rows(x: Float[Tensor, "n k"]) -> Iterator[int]:
        yield from range(len(x))

    def outer(x: Float[Tensor, "n k"], y: Tensor) -> list[int]:
        return [*found(y)]

    found = checked(rows)
    assert checked(outer)(UP, DOWN) == [0, 1]
    with pytest.raises(TypeCheckError):
        found(UP[0])


def test_modules_with_shapes_are_found():
    assert {"duolora.paper.ziprank", "duolora.paper.lowrank", "duolora.model.mount"} <= Finder.found.keys()
