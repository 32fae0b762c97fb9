"""The OpenAPI document, made of the declarations that also run the requests."""

import inspect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, get_type_hints

import msgspec

from api import problems
from api.callers import ANYONE
from api.operations import CSV, JSON, Operation
from api.problems import PROBLEMS
from engine.refusals import Busy, NotFound
from engine.sales import StaleVersion
from engine.stores.replies import Reply, title_of, word_of

REF = "#/components/schemas/{name}"
PROBLEM_JSON = "application/problem+json"

SAYS = {
    "Content-Encoding": "`gzip` where the answer is compressed.",
    "Cache-Control": "How long a cache may tell this to others.",
    "ETag": "The version of the record.",
    "Idempotent-Replayed": "`true` where an earlier request with this key took effect.",
    "Location": "Where the outcome will stand.",
    "Retry-After": "Seconds after which to ask again.",
    "WWW-Authenticate": "How to sign in.",
}

SECURITY = {
    "user": {"type": "http", "scheme": "bearer", "description": "The token of a user, from `POST /v1/sessions`."},
    "operator": {"type": "http", "scheme": "bearer", "description": "An operator's key."},
    "visitor": {
        "type": "apiKey",
        "in": "header",
        "name": "Visitor-Secret",
        "description": "A secret of at least 128 random bits that only the visitor's browser holds.",
    },
}


def document_of(operations: Sequence[Operation], *, version: str) -> dict[str, Any]:
    """Describe these operations."""
    bodies = [operation.body for operation in operations if operation.body]
    answered = [
        kind
        for operation in operations
        for answers in operation.answers.values()
        for kind in _alternatives(answers)
        if _is_document(kind)
    ]
    schemas, components = msgspec.json.schema_components([*bodies, *answered], ref_template=REF)
    schema_of = dict(zip(map(id, [*bodies, *answered]), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for operation in operations:
        paths[operation.path][operation.method.lower()] = _operation(operation, schema_of)
    refused = {kind for operation in operations for kind in refusals_of(operation)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Lastseat",
            "version": version,
            "description": "The last seat is sold once. Every error is a problem document (RFC 9457).",
        },
        "servers": [{"url": "/"}],
        "paths": dict(paths),
        "components": {
            "schemas": components | _problem_schemas(refused),
            "securitySchemes": SECURITY,
        },
        "tags": [{"name": tag} for tag in dict.fromkeys(operation.tag for operation in operations)],
    }


def refusals_of(operation: Operation) -> list[type[Reply]]:
    """Everything it may refuse: what it declares, and what follows from the rest of the declaration."""
    kinds: list[type[Reply]] = [problems.InternalError, Busy, *operation.refusals]
    if operation.caller is not ANYONE:
        kinds.append(problems.NotSignedIn)
    if operation.caller.scope:
        kinds.append(problems.ScopeMissing)
    if operation.ids:
        kinds.append(NotFound)
    if operation.keyed:
        kinds += [problems.KeyRequired, problems.InvalidRequest]
    if operation.edits:
        kinds += [StaleVersion, problems.InvalidRequest]
    if "query" in operation.takes or operation.reads or "visitor" in operation.caller.schemes:
        kinds.append(problems.InvalidRequest)
    if "body" in operation.takes:
        kinds += [problems.InvalidRequest, problems.BodyTooLarge]
    if operation.media_types:
        kinds.append(problems.MediaType)
    return list(dict.fromkeys(kinds))


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of what is answered with one status: a tuple where it depends on what was sent."""
    return kind if isinstance(kind, tuple) else (kind,)


def _is_document(kind: Any) -> bool:
    return kind is not None and not isinstance(kind, str)


def _operation(operation: Operation, schema_of: dict[int, Any]) -> dict[str, Any]:
    says = inspect.cleandoc(operation.handler.__doc__ or "").partition("\n\n")
    described: dict[str, Any] = {
        "operationId": f"{operation.handler.__module__.rpartition('.')[2]}_{operation.handler.__name__}",
        "tags": [operation.tag],
        "summary": says[0].replace("\n", " "),
        "parameters": _parameters(operation),
        "responses": _responses(operation, schema_of),
    }
    if says[2]:
        described["description"] = says[2]
    if operation.caller.schemes:
        described["security"] = [{scheme: []} for scheme in operation.caller.schemes]
    if operation.caller.scope:
        described["description"] = f"For a key with the scope `{operation.caller.scope}`. {says[2]}".strip()
    if operation.body:
        content = {JSON: {"schema": schema_of[id(operation.body)]}}
        if CSV in operation.media_types:
            content[CSV] = {"schema": {"type": "string"}}
        described["requestBody"] = {"required": operation.body_required, "content": content}
    if operation.takes_raw:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}
    return described


def _parameters(operation: Operation) -> list[dict[str, Any]]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in operation.ids
    ]
    if "query" in operation.takes:
        schema, components = msgspec.json.schema_components([operation.takes["query"]], ref_template=REF)
        fields = components[schema[0]["$ref"].rpartition("/")[2]]
        parameters += [
            {"name": name, "in": "query", "required": name in fields.get("required", ()), "schema": shape}
            for name, shape in fields["properties"].items()
        ]
    if operation.keyed:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "description": "Makes a repeat safe: the same key and body answer the same record and act once.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
            }
        )
    if operation.edits:
        parameters.append(
            {
                "name": "If-Match",
                "in": "header",
                "required": True,
                "description": "The ETag of the record that is edited.",
                "schema": {"type": "string", "pattern": '^(W/)?"[0-9]{1,18}"$'},
            }
        )
    return parameters + [
        {
            "name": read.name,
            "in": "header",
            "required": read.required,
            "description": read.says,
            "schema": {"type": "string"},
        }
        for read in operation.reads
    ]


def _responses(operation: Operation, schema_of: dict[int, Any]) -> dict[str, Any]:
    responses = {
        str(status): _answered(operation, kind, schema_of) for status, kind in sorted(operation.answers.items())
    }
    by_status: dict[int, list[type[Reply]]] = defaultdict(list)
    for refusal in refusals_of(operation):
        by_status[PROBLEMS[refusal].status].append(refusal)
    for status, kinds in sorted(by_status.items()):
        responses[str(status)] = _refused(kinds)
    return responses


def _answered(operation: Operation, answers: Any, schema_of: dict[int, Any]) -> dict[str, Any]:
    kinds = _alternatives(answers)
    response: dict[str, Any] = {"description": _says(kinds[0])}
    sent = [*operation.sends]
    if _is_document(kinds[0]):
        schemas = [schema_of[id(kind)] for kind in kinds]
        response["content"] = {JSON: {"schema": schemas[0] if len(schemas) == 1 else {"anyOf": schemas}}}
        sent += ["ETag"] if "version" in getattr(kinds[0], "__struct_fields__", ()) else []
    elif kinds[0] is not None:
        response["content"] = {kinds[0]: {"schema": {"type": "string"}}}
    sent += ["Idempotent-Replayed"] if operation.keyed else []
    if sent:
        response["headers"] = _headers(sent)
    return response


def _refused(kinds: Sequence[type[Reply]]) -> dict[str, Any]:
    words = sorted({word_of_problem(kind) for kind in kinds})
    refs = [{"$ref": REF.format(name=f"problem_{word}")} for word in words]
    schema = refs[0] if len(refs) == 1 else {"anyOf": refs}
    response: dict[str, Any] = {
        "description": ", ".join(words),
        "content": {PROBLEM_JSON: {"schema": schema}},
    }
    sent = ["WWW-Authenticate"] if problems.NotSignedIn in kinds else []
    sent += ["Retry-After"] if any(_is_temporary(kind) for kind in kinds) else []
    if sent:
        response["headers"] = _headers(sent)
    return response


def _says(kind: Any) -> str:
    if not _is_document(kind):
        return "Done."
    origin = getattr(kind, "__origin__", kind)
    return title_of(origin) + "."


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"description": SAYS[name], "schema": {"type": "string"}} for name in names}


def _is_temporary(kind: type[Reply]) -> bool:
    known_as = PROBLEMS[kind].known_as or kind
    return bool(getattr(known_as, "temporary", False))


def word_of_problem(kind: type[Reply]) -> str:
    """The word by which a client knows this refusal."""
    return word_of(PROBLEMS[kind].known_as or kind)


def _problem_schemas(kinds: Iterable[type[Reply]]) -> dict[str, Any]:
    schemas: dict[str, Any] = {}
    nested: dict[str, Any] = {}
    for kind in sorted(kinds, key=word_of_problem):
        problem = PROBLEMS[kind]
        told = get_type_hints(problem.told)["return"] if problem.told else kind
        (ref,), components = msgspec.json.schema_components([told], ref_template=REF)
        fields = components.pop(ref["$ref"].rpartition("/")[2])
        nested |= components
        schemas[f"problem_{word_of_problem(kind)}"] = {
            "title": title_of(problem.known_as or kind),
            "type": "object",
            "properties": {
                "type": {"const": problems.type_of(kind)},
                "title": {"type": "string"},
                "status": {"const": problem.status},
                "detail": {"type": "string"},
                **fields["properties"],
            },
            "required": ["type", "title", "status", *fields.get("required", ())],
        }
    return schemas | nested
