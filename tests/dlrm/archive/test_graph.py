"""A rebuilt tower predicts as torch's own loader has it predict, whatever it is made of."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from erless.dlrm.archive import build_module, load_exported, move_module, read_archive
from erless.dlrm.archive.arithmetic import FUNCTIONS, power
from erless.dlrm.archive.operators import LOOKUPS, OPERATORS
from erless.errors import ArtifactError, ModelError
from tests.dlrm.archive.modules import towers

BATCH = Dim("batch", min=1, max=4096)
DYNAMIC = {"dense": {0: BATCH}, "pooled": {0: BATCH}}
FORMS: dict[str, Callable[[ExportedProgram], ExportedProgram]] = {
    "as traced": lambda program: program,
    "functional": lambda program: program.run_decompositions({}),
    "core": lambda program: program.run_decompositions(),
}


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return torch.rand(batch, 3, generator=generator), torch.rand(batch, 2, 4, generator=generator)


def export(module: nn.Module) -> ExportedProgram:
    return torch.export.export(module.eval(), inputs(4), dynamic_shapes=DYNAMIC)


@cache
def traced(name: str) -> ExportedProgram:
    return export(towers()[name])


DECOMPOSED = ("dlrm", "din", "attention", "norms", "convolutions", "casts")
CASES = [(name, "as traced") for name in towers()]
CASES += [(name, form) for name in DECOMPOSED for form in ("functional", "core")]


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_a_rebuilt_tower_equals_torchs_own(tmp_path: Path, name: str, form: str) -> None:
    path = tmp_path / "tower.pt2"
    torch.export.save(FORMS[form](traced(name)), path)
    original = torch.export.load(path).module(check_guards=False)
    rebuilt = load_exported(path)
    with torch.inference_mode():
        for batch in (1, 2, 33):
            (predictions,) = rebuilt(*inputs(batch))
            expected = original(*inputs(batch))
            torch.testing.assert_close(predictions, expected, rtol=1e-6, atol=1e-6)


def test_no_text_of_an_archive_gets_into_the_source(tmp_path: Path) -> None:
    path = tmp_path / "tower.pt2"
    torch.export.save(traced("din"), path)
    module = load_exported(path)
    names = {node.id for node in ast.walk(ast.parse(module.code)) if isinstance(node, ast.Name)}
    archive = read_archive(path)
    theirs = {value.node for value in archive.signature.inputs} | set(archive.signature.tensors)
    assert len(theirs) > 8
    assert not names & theirs


class Several(nn.Module):
    """Two inputs, one of ids, and two outputs with names."""

    def forward(self, user: Tensor, ids: Tensor) -> dict[str, Tensor]:
        return {"ctr": user.sum(1).sigmoid(), "rows": torch.remainder(ids, 7)}


def test_a_program_of_ids_and_named_outputs_is_read(tmp_path: Path) -> None:
    batch = Dim("batch", min=2, max=64)
    example = (torch.rand(4, 3), torch.arange(8).reshape(4, 2))
    program = torch.export.export(
        Several(), example, dynamic_shapes={"user": {0: batch}, "ids": {0: batch}}
    )
    torch.export.save(program, tmp_path / "model.pt2")
    archive = read_archive(tmp_path / "model.pt2")
    signature = archive.signature
    assert [(value.name, value.dtype) for value in signature.inputs] == [
        ("user", torch.float32),
        ("ids", torch.int64),
    ]
    assert [value.name for value in signature.outputs] == ["ctr", "rows"]
    limits = signature.range_of(signature.inputs[0].shape[0])
    assert limits is not None
    assert (limits.minimum, limits.maximum) == (2, 64)
    ctr, rows = build_module(archive)(*example)
    torch.testing.assert_close(ctr, example[0].sum(1).sigmoid())
    assert torch.equal(rows, example[1] % 7)
    with pytest.raises(ArtifactError, match=r"gives 2 outputs \(ctr, rows\); a tower gives one"):
        load_exported(tmp_path / "model.pt2")


class Reversed(nn.Module):
    def forward(self, pooled: Tensor, dense: Tensor) -> Tensor:
        return (pooled[:, 0] * 2).sum(1) + dense.sum(1)


def test_inputs_named_dense_and_pooled_are_taken_by_name(tmp_path: Path) -> None:
    dense, pooled = inputs(4)
    program = torch.export.export(
        Reversed(), (pooled, dense), dynamic_shapes={"pooled": {0: BATCH}, "dense": {0: BATCH}}
    )
    torch.export.save(program, tmp_path / "tower.pt2")
    (predictions,) = load_exported(tmp_path / "tower.pt2")(*inputs(9))
    torch.testing.assert_close(predictions, Reversed()(*inputs(9)[::-1]))


def test_a_tower_moves_with_the_tensors_that_it_makes(tmp_path: Path) -> None:
    path = tmp_path / "tower.pt2"
    torch.export.save(traced("constants"), path)
    (made,) = move_module(load_exported(path), "meta", torch.float32)(
        *(value.to("meta") for value in inputs(5))
    )
    assert made.device.type == "meta"
    assert made.shape == (5,)


def test_sizes_stay_within_64_bits() -> None:
    with pytest.raises(ModelError, match="to the power of 387420489"):
        power(9, 9**9)
    with pytest.raises(ModelError, match="more than 64 bits"):
        FUNCTIONS["_operator.mul"][0](2**62, 2)
    with pytest.raises(ModelError, match="by zero"):
        FUNCTIONS["_operator.floordiv"][0](1, 0)
    assert FUNCTIONS["_operator.add"][0](2, 3) == 5


def test_every_operator_of_the_list_is_pure() -> None:
    for name in OPERATORS | LOOKUPS:
        packet, _, overload = name.partition(".")
        operator = getattr(getattr(torch.ops.aten, packet), overload)
        assert not operator._schema.is_mutable, name
        drawn = {"dropout.default", "scaled_dot_product_attention.default"}  # refused where they do
        assert torch.Tag.nondeterministic_seeded not in operator.tags or name in drawn


def test_example_inputs_that_an_earlier_export_marked_are_harmless(tmp_path: Path) -> None:
    example = inputs(4)
    auto = {"dense": {0: Dim.AUTO}, "pooled": {0: Dim.AUTO}}
    for _ in range(2):  # the first leaves attributes of Python on the tensors
        program = torch.export.export(towers()["deepfm"], example, dynamic_shapes=auto)
    torch.export.save(program, tmp_path / "tower.pt2")
    (predictions,) = load_exported(tmp_path / "tower.pt2")(*inputs(7))
    assert predictions.shape[0] == 7
