"""The page infra/docs/api-reference.md, made of the OpenAPI document:

python -m serving.api.reference_page > infra/docs/api-reference.md
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from feature_repo.contracts.environment import HOME, Environment
from serving.adapters.decision_log import MemoryDecisionLog
from serving.adapters.memory_event_log import MemoryEventLog
from serving.adapters.online import MemoryOnlineStore
from serving.main import create_app
from serving.settings import ServingSettings

COMMAND = "python -m serving.api.reference_page > infra/docs/api-reference.md"
_TAGS = ("recommendations", "lists", "users", "decisions", "events", "items", "health")
_LIMITS = ("minimum", "maximum", "exclusiveMinimum", "minLength", "maxLength", "minItems", "maxItems")
_LONGEST_DEFAULT = 40

Schema = Mapping[str, Any]


def openapi_document() -> dict[str, Any]:
    """The OpenAPI document of the API, without any store."""
    app = create_app(
        Environment.from_mapping({HOME: "/nowhere"}),
        ServingSettings(),
        store=MemoryOnlineStore(tenant="default"),
        log=MemoryEventLog(tenant="default"),
        decisions=MemoryDecisionLog(),
    )
    document: dict[str, Any] = app.openapi()
    return document


def render_page(document: Schema) -> str:
    """The whole page."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Schema) -> Iterator[str]:
    models: Schema = document["components"]["schemas"]
    calls = [
        (method, path, call) for path, methods in document["paths"].items() for method, call in methods.items()
    ]  # fmt: skip
    tags = sorted({_tag(call) for *_, call in calls}, key=lambda tag: (_place(tag), tag))
    yield "# API reference"
    yield ""
    yield f"Generated from the OpenAPI document (`/openapi.json`, `/docs`): `{COMMAND}`."
    yield ""
    yield str(document["info"]["description"])
    yield ""
    yield "| call | |"
    yield "|---|---|"
    for tag in tags:
        for method, path, call in calls:
            if _tag(call) == tag:
                yield f"| `{method.upper()} {path}` | {_cell(call.get('summary', ''))} |"
    named: dict[str, None] = {}
    for tag in tags:
        yield ""
        yield f"## {tag.capitalize()}"
        for method, path, call in calls:
            if _tag(call) == tag:
                yield from _call(method, path, call, models, named)
    yield ""
    yield "## Models"
    done: set[str] = set()
    while waiting := [name for name in named if name not in done]:
        for name in sorted(waiting):
            done.add(name)
            yield from _model(name, models[name], named)


def _call(method: str, path: str, call: Schema, models: Schema, named: dict[str, None]) -> Iterator[str]:
    yield ""
    yield f"### {method.upper()} {path}"
    yield ""
    yield f"{call.get('summary', '')}."
    if text := call.get("description"):
        yield ""
        yield " ".join(str(text).split())
    if parameters := call.get("parameters"):
        yield ""
        yield "| parameter | in | type | |"
        yield "|---|---|---|---|"
        for one in parameters:
            more = _more(one["schema"], one.get("description", ""), required=one.get("required", False))
            yield f"| `{one['name']}` | {one['in']} | {_type(one['schema'], named)} | {more} |"
    for content_type, form in call.get("requestBody", {}).get("content", {}).items():
        yield ""
        yield f"Body, `{content_type}`: {_type(form.get('schema', {}), named)}."
        yield from _example(form, models)
    answers = []
    for status, answer in sorted(call.get("responses", {}).items()):
        schema: Schema = next((form.get("schema", {}) for form in answer.get("content", {}).values()), {})
        answers.append(f"{status} {_type(schema, named)}" if schema.get("$ref") else str(status))
    if answers:
        yield ""
        yield f"Answers: {', '.join(answers)}."


def _example(form: Schema, models: Schema) -> Iterator[str]:
    examples = [one["value"] for one in form.get("examples", {}).values()]
    name = str(form.get("schema", {}).get("$ref", "")).rpartition("/")[2]
    examples += models.get(name, {}).get("examples", [])
    yield from _shown(examples[:2])


def _model(name: str, schema: Schema, named: dict[str, None]) -> Iterator[str]:
    yield ""
    yield f"### {name}"
    if text := schema.get("description"):
        yield ""
        yield " ".join(str(text).split())
    properties: Schema = schema.get("properties", {})
    if not properties:
        return
    yield ""
    yield "| field | type | |"
    yield "|---|---|---|"
    for field, value in properties.items():
        more = _more(value, value.get("description", ""), required=field in schema.get("required", ()))
        yield f"| `{field}` | {_type(value, named)} | {more} |"
    if name.endswith("Response"):
        yield from _shown(schema.get("examples", [])[:1])


def _shown(examples: Sequence[Any]) -> Iterator[str]:
    if examples:
        yield ""
        yield "```json"
        for value in examples:
            yield value.rstrip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield "```"


def _type(schema: Schema, named: dict[str, None]) -> str:
    if reference := schema.get("$ref"):
        name = str(reference).rpartition("/")[2]
        named.setdefault(name)
        return f"[{name}](#{name.lower()})"
    choices: Sequence[Schema] = schema.get("anyOf") or schema.get("oneOf") or ()
    if choices:
        return " or ".join(dict.fromkeys(_type(choice, named) for choice in choices))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}), named)}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_type(schema['additionalProperties'], named)}"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def _more(schema: Schema, description: str, *, required: bool) -> str:
    parts = ["required"] if required else []
    if description:
        parts.append(_cell(description))
    bounds = {**next((one for one in schema.get("anyOf", ()) if one.get("type") != "null"), {}), **schema}
    parts += [f"{_words(name)} {bounds[name]}" for name in _LIMITS if name in bounds]
    default = json.dumps(schema["default"], ensure_ascii=False) if "default" in schema else "null"
    if default not in ("null", "[]", "{}") and len(default) <= _LONGEST_DEFAULT:
        parts.append(f"default `{default}`")
    return "; ".join(parts)


def _words(limit: str) -> str:
    return "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in limit)


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _tag(call: Schema) -> str:
    tags: Sequence[str] = call.get("tags") or ["other"]
    return tags[0]


def _place(tag: str) -> int:
    return _TAGS.index(tag) if tag in _TAGS else len(_TAGS)


if __name__ == "__main__":
    print(render_page(openapi_document()), end="")
