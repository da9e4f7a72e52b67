"""The base of the tables of settings: which kinds of value they take."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from afdc.task import Model

NUMBERS = {int, float}


class SettingsTable(Model):
    """Base of the tables of settings. A value of another kind is refused, not turned into the wanted one."""

    model_config = ConfigDict(allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _check_kind(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if any(issubclass(kind, BaseModel) for kind in wanted):
            if not isinstance(value, BaseModel | dict):
                raise ValueError("a table of settings belongs here")
        elif isinstance(value, bool) and bool not in wanted:
            raise ValueError("true and false have no meaning here")
        elif isinstance(value, str) and str not in wanted:
            raise ValueError(f"a {'number' if wanted & NUMBERS else 'true or false'} belongs here, without quotes")
        elif isinstance(value, int | float) and not isinstance(value, bool) and not wanted & NUMBERS:
            raise ValueError(f"a {'true or false' if bool in wanted else 'name'} belongs here")
        return value


def _kinds(annotation: Any) -> set[type]:
    """The plain types that an annotation allows."""
    if get_origin(annotation) is Literal:
        return {type(choice) for choice in get_args(annotation)}
    if get_origin(annotation) in (Union, UnionType):
        return {kind for part in get_args(annotation) for kind in _kinds(part)} - {NoneType}
    return {annotation}
