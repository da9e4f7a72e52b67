"""Fill the generated parts of the documentation from the code: `python docs/generate.py`, or `--check` to compare only.

A generated part stands between `<!-- begin NAME -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from afdc.config import RunConfig
from afdc.presets import PRESETS
from afdc.result import EvalReport, RunResult
from afdc_server.api.app import make_app
from afdc_server.export.schema import AUDIT_SCHEMA

DOCS = Path(__file__).parent
COMMANDS = (
    "",
    *("run", "score", "predict", "eval", "doctor"),
    *("submit", "watch", "jobs", "pause", "resume", "cancel", "retry", "pull", "export", "review"),
    *("keys", "keys list", "keys create", "keys revoke"),
)
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def option_tables() -> str:
    """One table for the top level and one for each section of RunConfig."""
    sections = {name: info for name, info in RunConfig.model_fields.items() if _is_section(info)}
    plain = {name: info for name, info in RunConfig.model_fields.items() if name not in sections}
    parts = [_option_table(plain, "")]
    for name, info in sections.items():
        section: Any = info.annotation
        about = str(section.__doc__).strip().splitlines()[0]
        parts.append(f"### `[run.{name}]`\n\n{about}\n\n{_option_table(section.model_fields, name + '.')}")
    return "\n\n".join(parts)


def _is_section(info: FieldInfo) -> bool:
    return isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)


def _option_table(fields: dict[str, FieldInfo], prefix: str) -> str:
    lines = ["| option | values | default | meaning |", "|---|---|---|---|"]
    for name, info in fields.items():
        values = _type_name(info.annotation) + "".join(f", {bound}" for bound in _bounds(info))
        default = json.dumps(info.default, ensure_ascii=False)
        lines.append(f"| `{prefix}{name}` | {values} | `{default}` | {(info.description or '').replace('|', '/')} |")
    return "\n".join(lines)


def _bounds(info: FieldInfo) -> list[str]:
    return [
        f"{sign} {getattr(rule, name)}"
        for rule in info.metadata
        for name, sign in BOUNDS.items()
        if hasattr(rule, name)
    ]


def _type_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return " · ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(_type_name(one) for one in get_args(annotation))
    names = {int: "integer", float: "number", bool: "true · false", str: "text", type(None): "none"}
    return names.get(annotation, str(annotation))


def preset_table() -> str:
    """What `paper` sets differently from `default`."""
    lines = ["| option | default | paper |", "|---|---|---|"]
    for section, values in PRESETS["paper"].items():
        defaults = getattr(RunConfig(), section)
        for name, value in values.items():
            default = json.dumps(getattr(defaults, name))
            lines.append(f"| `{section}.{name}` | `{default}` | `{json.dumps(value)}` |")
    return "\n".join(lines)


def column_table() -> str:
    """Columns of the default configuration."""
    lines = ["| column | type |", "|---|---|"]
    return "\n".join(lines + [f"| `{field.name}` | {_arrow_name(str(field.type))} |" for field in AUDIT_SCHEMA])


def _arrow_name(name: str) -> str:
    return re.sub(r"list<\w+: (\w+)>", r"list of \1", name)


def schema(model: type[BaseModel]) -> Callable[[], str]:
    """The JSON schema of a model, as a code block."""
    return lambda: "```json\n" + json.dumps(model.model_json_schema(), indent=2, ensure_ascii=False) + "\n```"


def cli_help() -> str:
    """`--help` of every command, as a terminal of 100 columns shows it."""
    return "\n\n".join(f"## `{_name(command)}`\n\n```\n{_help(command)}\n```" for command in COMMANDS)


def _name(command: str) -> str:
    return f"afdc {command}".strip()


def _help(command: str) -> str:
    code = "from afdc.cli.app import app; app(prog_name='afdc')"
    arguments = [sys.executable, "-c", code, *command.split(), "--help"]
    environment = {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "PATH": ""}
    shown = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout
    return "\n".join(line.rstrip() for line in shown.strip().splitlines())


def http_operations() -> str:
    """Every operation of the HTTP API: a section a tag, each operation with parameters, body and replies."""
    document = make_app().openapi()
    by_tag: dict[str, list[str]] = {}
    for path, item in document["paths"].items():
        for method, operation in item.items():
            by_tag.setdefault(operation["tags"][0], []).append(_operation(method.upper(), path, operation))
    return "\n\n".join(f"## {tag.capitalize()}\n\n" + "\n\n".join(parts) for tag, parts in by_tag.items())


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    scope = operation.get("x-scope")
    about = " ".join([f"{operation['summary']}.", *str(operation.get("description", "")).split()]).replace("?.", "?")
    key = f"Scope `{scope}`. Operation `{operation['operationId']}`." if scope else "No key."
    parts = [f"### `{method} {path}`", f"{about} {key}", _parameters(operation), _body(operation), _replies(operation)]
    return "\n\n".join(part for part in parts if part)


def _parameters(operation: dict[str, Any]) -> str:
    rows = [
        f"| `{one['name']}` | {one['in']} | {_schema_type(one['schema'])} | {_default(one)} | {_line(one)} |"
        for one in operation.get("parameters", [])
        if (one["in"], one["name"]) != ("path", "id")  # stands in the heading
    ]
    return "\n".join(["| parameter | in | type | default | meaning |", "|---|---|---|---|---|", *rows]) if rows else ""


def _default(parameter: dict[str, Any]) -> str:
    if parameter.get("required"):
        return "required"
    value = parameter["schema"].get("default")
    return f"`{json.dumps(value)}`" if value not in (None, "") else ""


def _line(described: dict[str, Any]) -> str:
    return str(described.get("description", "")).replace("\n", " ").replace("|", "\\|")


def _body(operation: dict[str, Any]) -> str:
    content = operation.get("requestBody", {}).get("content", {})
    parts = []
    for kind, described in content.items():
        shown = [one["value"] for one in described.get("examples", {}).values()] or [described["example"]]
        example = shown[0] if isinstance(shown[0], str) else json.dumps(shown[-1], ensure_ascii=False)
        schema = f" ({_schema_type(described['schema'])})" if kind == "application/json" else ""
        parts.append(f"Body `{kind}`{schema}:\n\n```{'json' if schema else ''}\n{example.strip()}\n```")
    return "\n\n".join(parts)


def _replies(operation: dict[str, Any]) -> str:
    good = [
        f"- {status}: " + (", ".join(_reply(kind, one) for kind, one in reply.get("content", {}).items()) or "no body")
        for status, reply in operation["responses"].items()
        if "Problem" not in str(reply)
    ]
    bad = sorted(status for status, reply in operation["responses"].items() if "Problem" in str(reply))
    return "\n".join([*good, *([f"- {', '.join(bad)}: [`Problem`](#problem)"] if bad else [])])


def _reply(kind: str, described: dict[str, Any]) -> str:
    return _schema_type(described["schema"]) if kind == "application/json" else f"`{kind}`"


def _schema_type(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words; models are links to their tables."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[`{name}`](#{name.lower()})"
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_schema_type(one) for one in schema[key]))
    if "enum" in schema or "const" in schema:
        return " · ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {_schema_type(schema['items'])}" if "items" in schema else "list"
    kinds = {"string": "text", "integer": "integer", "number": "number", "boolean": "true · false", "null": "null"}
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "maxLength": "length ≤"}
    limits = [f"{sign} {schema[name]}" for name, sign in bounds.items() if name in schema]
    return ", ".join([kinds.get(str(schema.get("type")), "object" if schema.get("type") else "any"), *limits])


def http_schemas() -> str:
    """A table of fields for every model of the HTTP API."""
    schemas = make_app().openapi()["components"]["schemas"]
    return "\n\n".join(_schema_table(name, schema) for name, schema in sorted(schemas.items()))


def _schema_table(name: str, schema: dict[str, Any]) -> str:
    about = " ".join(str(schema.get("description", "")).split())
    rows = [
        f"| `{field}` | {_schema_type(one)} | {_line(one)} |" for field, one in schema.get("properties", {}).items()
    ]
    table = "\n".join(["| field | type | meaning |", "|---|---|---|", *rows]) if rows else _schema_type(schema)
    return "\n\n".join(part for part in (f"### {name}", about, table) if part)


PARTS: dict[str, dict[str, Callable[[], str]]] = {
    "configuration.md": {"options": option_tables, "presets": preset_table},
    "outputs.md": {"columns": column_table, "result-schema": schema(RunResult), "eval-schema": schema(EvalReport)},
    "cli.md": {"help": cli_help},
    "http-api.md": {"operations": http_operations, "schemas": http_schemas},
}


def fill(name: str, text: str) -> str:
    """`text` of the page `name` with its generated parts made anew."""
    for part, make in PARTS[name].items():
        begin, end = f"<!-- begin {part} -->", f"<!-- end {part} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"{name} needs the marks of part {part!r} exactly once")
        head, rest = text.split(begin)
        text = f"{head}{begin}\n\n{make()}\n\n{end}{rest.split(end)[1]}"
    return text


def main() -> int:
    """Write the pages, or with --check say which ones are out of date."""
    stale = 0
    for name in PARTS:
        path = DOCS / name
        old = path.read_text(encoding="utf-8")
        new = fill(name, old)
        if new != old and "--check" in sys.argv:
            print(f"docs/{name} is out of date: run python docs/generate.py", file=sys.stderr)
            stale = 1
        elif new != old:
            path.write_text(new, encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main())
