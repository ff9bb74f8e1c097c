import pytest
from pydantic import ValidationError

from erless.specs.model import DlrmTower, ExportedTower, Interaction, ModelSpec, TableSpec


def table(name: str = "a", dim: int = 4) -> TableSpec:
    return TableSpec(name=name, rows=10, dim=dim)


def test_sizes() -> None:
    model = ModelSpec(dense_features=1, tables=(table(), table("b", 8)), tower=ExportedTower())
    assert model.embedding_bytes == 10 * 16 + 10 * 32
    assert model.table("b").row_bytes == 32
    with pytest.raises(KeyError):
        model.table("c")


@pytest.mark.parametrize(
    ("tables", "tower", "message"),
    [
        ((table(), table()), ExportedTower(), "table a is listed twice"),
        ((table(dim=8),), DlrmTower(bottom_mlp=(4,), top_mlp=(1,)), "table a has dim 8"),
        ((table(),), DlrmTower(bottom_mlp=(4,), top_mlp=(2,)), "ends in 2 outputs"),
        (
            (table(),),
            {"kind": "dlrm", "bottom_mlp": [4], "top_mlp": [1], "interaction": "dcn"},
            "a cross net goes with the interaction dcn",
        ),
    ],
)
def test_contradictions(tables: tuple[TableSpec, ...], tower: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelSpec(dense_features=1, tables=tables, tower=tower)


def test_concatenation_takes_any_dims() -> None:
    tower = DlrmTower(bottom_mlp=(5,), top_mlp=(1,), interaction=Interaction.CAT)
    ModelSpec(dense_features=1, tables=(table(dim=8), table("b", 2)), tower=tower)


def test_a_plain_tower_is_written_as_it_always_was() -> None:
    tower = DlrmTower(bottom_mlp=(4,), top_mlp=(1,))
    assert list(tower.model_dump()) == ["kind", "bottom_mlp", "top_mlp", "interaction", "sigmoid"]


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "-a", "x" * 101])
def test_table_names_are_file_names(name: str) -> None:
    with pytest.raises(ValidationError):
        table(name)
