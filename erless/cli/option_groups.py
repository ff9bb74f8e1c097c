"""Options of a verb in groups: a dataclass of options, or a pydantic model that they fill.

A parameter of a verb whose type is a dataclass stands for one option per field. A parameter
annotated `Annotated[Mapping[str, Any], FilledBy(Model)]` stands for one option per field of the
model, with the field's type, range, description and default; the verb gets those that were given.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

__all__ = ["FilledBy", "grouped"]

TYPES: tuple[type, ...] = (bool, int, float)


@dataclass(frozen=True)
class FilledBy:
    """The model that the options fill.

    Args:
        model: has one option per field.
        words: fields whose option takes several words, which the verb makes sense of.
        without: fields that no option of their own fills.
    """

    model: type[BaseModel]
    words: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def parameters(self) -> list[inspect.Parameter]:
        """One option per field."""
        return [
            _parameter(name, _option(name, field, name in self.words), None)
            for name, field in self.model.model_fields.items()
            if name not in self.without
        ]

    def gathered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The options that the command line sets, by field."""
        options = {parameter.name: values[parameter.name] for parameter in self.parameters()}
        return {
            name: value
            for name, value in options.items()
            if value is not None and value is not False
        }


@dataclass(frozen=True)
class _Group:
    """The options of a dataclass."""

    kind: type

    def parameters(self) -> list[inspect.Parameter]:
        hints = get_type_hints(self.kind, include_extras=True)
        return [
            _parameter(option.name, hints[option.name], _default(option.default))
            for option in fields(self.kind)
        ]

    def gathered(self, values: Mapping[str, Any]) -> Any:
        return self.kind(**{option.name: values[option.name] for option in fields(self.kind)})


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """`verb` as typer wants it: one parameter per option, in the order of its groups."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, FilledBy | _Group] = {}
    flat: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(verb).parameters.items():
        group = _group(hints[name])
        if group is None:
            flat.append(_parameter(name, hints[name], parameter.default))
        else:
            groups[name] = group
            flat += group.parameters()

    @wraps(verb)
    def run(**values: Any) -> None:
        alone = {
            parameter.name: values[parameter.name] for parameter in flat if parameter.name in hints
        }
        alone |= {name: group.gathered(values) for name, group in groups.items()}
        verb(**alone)

    run.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    return run


def _group(hint: Any) -> FilledBy | _Group | None:
    if is_dataclass(hint) and isinstance(hint, type):
        return _Group(hint)
    return next((argument for argument in get_args(hint) if isinstance(argument, FilledBy)), None)


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _default(default: Any) -> Any:
    """A dataclass field's default as a parameter has it: an option without one must be given."""
    return inspect.Parameter.empty if default is MISSING else default


def _option(name: str, field: FieldInfo, words: bool) -> Any:
    """The option that fills a field, as typer's annotation."""
    from pydantic import BeforeValidator

    flag = f"--{name.replace('_', '-')}"
    plain, facts = _unwrapped(field)
    help_ = _help(field, facts, plain)
    if words:
        return Annotated[list[str] | None, typer.Option(flag, help=help_)]
    if plain is bool:
        return Annotated[bool | None, typer.Option(flag, help=help_)]
    parsed = any(isinstance(fact, BeforeValidator) for fact in facts)
    if plain not in TYPES or parsed:
        metavar = "|".join(get_args(plain)) if get_origin(plain) is Literal else None
        return Annotated[str | None, typer.Option(flag, help=help_, metavar=metavar)]
    least = next((fact.ge for fact in facts if hasattr(fact, "ge")), None)
    most = next((fact.le for fact in facts if hasattr(fact, "le")), None)
    between = typer.Option(flag, help=help_, min=least, max=most)
    return Annotated[plain | None, between]


def _unwrapped(field: FieldInfo) -> tuple[Any, list[Any]]:
    """A field's type without `| None` and `Annotated`, and all of its annotations."""
    from pydantic.fields import FieldInfo

    hints: list[Any] = [field.annotation]
    facts: list[Any] = list(field.metadata)
    while True:
        hint = hints[-1]
        if get_origin(hint) is Annotated:
            for fact in get_args(hint)[1:]:
                facts += [*fact.metadata, fact] if isinstance(fact, FieldInfo) else [fact]
            hints.append(get_args(hint)[0])
        elif type(None) in get_args(hint):
            hints.append(
                next(argument for argument in get_args(hint) if argument is not type(None))
            )
        else:
            return hint, facts


def _help(field: FieldInfo, facts: list[Any], plain: Any) -> str:
    """The description, with the default in brackets where it does not name one itself."""
    inner = (getattr(fact, "description", None) for fact in facts)
    meaning = (field.description or next(filter(None, inner), "")).removesuffix(".")
    if meaning.endswith("]") or plain is bool or field.default in (None, "", ()):
        return f"{meaning}."
    return f"{meaning} [{field.default}]."
