"""The description of the endpoints in OpenAPI, made from the structs that requests are read with."""

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import msgspec

from pefx.http.api import Operation
from pefx.http.objects import ErrorAnswer

TEMPLATE = "#/components/schemas/{name}"
ALWAYS = {400, 405, 500, 503}  # of any endpoint


def document(operations: Iterable[Operation]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of `operations`."""
    operations = list(operations)
    kinds = [ErrorAnswer, *{kind for o in operations for kind in (o.body, o.answer, o.event) if kind is not None}]
    kinds.sort(key=lambda kind: kind.__name__)
    references, components = msgspec.json.schema_components(kinds, ref_template=TEMPLATE)
    named = dict(zip(kinds, references, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation, named)
    return {
        "openapi": "3.1.0",
        "info": {"title": "pefx", "version": version("pefx"), "description": "Personal models over one base."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _described(operation: Operation, named: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": "_".join(operation.path.strip("/").translate(str.maketrans("/{}", "_  ")).split()),
        "responses": _responses(operation, named),
    }
    parameters = [
        {"name": name, "in": "query", "required": "default" not in schema, "schema": schema}
        for name, schema in operation.query
    ]
    if "{model}" in operation.path:
        schema = {"type": "string", "minLength": 1}
        parameters.append({"name": "model", "in": "path", "required": True, "schema": schema})
    if parameters:
        found["parameters"] = parameters
    if operation.body is not None:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": named[operation.body]}}}
    if operation.keyed:
        found["security"] = [{"key": []}, {}]  # none where the server has no key file
    return found


def _responses(operation: Operation, named: dict[Any, dict[str, Any]]) -> dict[str, Any]:
    answer = {"schema": named[operation.answer]} if operation.answer is not None else {"schema": {"type": "string"}}
    content = {operation.media: answer}
    if operation.event is not None:
        data = {
            "type": "string",
            "contentMediaType": "application/json",
            "contentSchema": named[operation.event],
        }
        event = {"type": "object", "properties": {"data": {"anyOf": [data, {"const": "[DONE]"}]}}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    responses: dict[str, Any] = {"200": {"description": "Done.", "content": content}}
    statuses = set(ALWAYS)
    if operation.keyed:
        statuses |= {401, 429}
    if operation.admin:
        statuses |= {403, 404, 409, 422}
    if operation.body is not None:
        statuses |= {413, 415}
    if operation.event is not None or "{model}" in operation.path:
        statuses |= {404, 422, 504}
    refused = {"content": {"application/json": {"schema": named[ErrorAnswer]}}}
    for status in sorted(statuses):
        own = status == 503 and not operation.keyed and operation.answer is not None
        responses[str(status)] = {"description": "Refused.", **({"content": content} if own else refused)}
    return responses
