"""The pages about the API: the OpenAPI document, and the same to read and to try, with nothing from elsewhere."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import msgspec

from api.answers import Answer, encode
from api.operations import Operation, Request, Routes

PAGE = Template((Path(__file__).parent / "docs.html").read_text(encoding="utf-8"))


def operations(document: dict[str, Any]) -> list[Operation]:
    """Serve a document and its page; both are written once."""
    routes = Routes("Documentation")
    written = encode(document)
    page = write_page(document).encode()

    @routes.add("GET", "/openapi.json", {200: "application/json"})
    async def show_document(_request: Request) -> Answer:
        """The OpenAPI document."""
        return Answer(written)

    @routes.add("GET", "/docs", {200: "text/html"})
    async def show_page(_request: Request) -> Answer:
        """The OpenAPI document as a page."""
        return Answer(page, media_type=b"text/html; charset=utf-8")

    return routes.operations


def write_page(document: dict[str, Any]) -> str:
    """Write the page of a document."""
    sections: dict[str, list[str]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            sections[operation["tags"][0]].append("".join(_operation(method.upper(), path, operation)))
    listed = [f"<h2>{escape(tag)}</h2>\n{''.join(operations)}" for tag, operations in sections.items()]
    schemas = [
        f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>{_json(schema)}</details>'
        for name, schema in sorted(document["components"]["schemas"].items())
    ]
    return PAGE.substitute(
        title=escape(document["info"]["title"]),
        version=escape(document["info"]["version"]),
        description=escape(document["info"]["description"]),
        operations="\n".join(listed),
        schemas="\n".join(schemas),
    )


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f'<details id="{escape(operation["operationId"])}"><summary><span class="method">{method}</span>'
    yield f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    if "security" in operation:
        schemes = " or ".join(name for scheme in operation["security"] for name in scheme)
        yield f"<p>Called by: {escape(schemes)}</p>"
    yield "<table>"
    for status, response in operation["responses"].items():
        yield f"<tr><th>{status}<td>{escape(response['description'])}<td>{_shapes(response)}"
    yield f'</table><form data-method="{method}" data-path="{escape(path)}">'
    for parameter in operation["parameters"]:
        name = escape(parameter["name"])
        need = " required" if parameter["required"] else ""
        says = escape(parameter.get("description") or parameter["schema"].get("description", ""))
        yield f'<label><code>{name}</code> {says}<input name="{name}" data-in="{parameter["in"]}"{need}></label>'
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        yield f"<label>Body {_shapes(operation['requestBody'])}{_json(schema) if '$ref' not in schema else ''}"
        yield "<textarea rows=4>{}</textarea></label>"
    yield "<button>Send</button><pre><output></output></pre></form></details>"


def _shapes(described: dict[str, Any]) -> str:
    """Links to the shapes that a body may have."""
    links = []
    for content in described.get("content", {}).values():
        schema = content["schema"]
        for one in schema.get("anyOf", [schema]):
            if "$ref" in one:
                name = one["$ref"].rpartition("/")[2]
                links.append(f'<a href="#{escape(name)}"><code>{escape(name)}</code></a>')
    return " ".join(links)


def _json(schema: object) -> str:
    written = msgspec.json.format(encode(schema), indent=2).decode()
    return f"<pre>{escape(written)}</pre>"
