"""Checks requests and answers against GitHub's own OpenAPI description."""

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from openapi_schema_validator import OAS30Validator
from referencing import Registry
from referencing.jsonschema import DRAFT4


OLDEST, NEWEST = "2022-11-28", "2026-03-10"
# The description leaves these out on most operations; GitHub answers with them on all.
TOLERATED = frozenset({400, 401, 403, 404, 410, 429})
SERVER_ERRORS = range(500, 600)
# Real, but not described: where a 301 leads to, and what cargo and uv ask before they fetch.
UNDESCRIBED = re.compile(r"/repositories/\d+/installation|/repos/[^/]+/[^/]+/commits/HEAD")
BASE = "urn:github"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the description and where it stands in it."""

    method: str
    template: str
    path: re.Pattern[str]
    pointer: str
    content: Mapping[str, Any]


class Description:
    """The description of one version of the API; every check returns the violations as text."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._document = document
        resource = DRAFT4.create_resource(document)
        self._registry: Registry[Any] = Registry().with_resource(BASE, resource)
        self._operations = list(_operations(document))
        self._validators: dict[str, Any] = {}

    @classmethod
    @functools.cache  # it is read only, and each test has a stand-in
    def load(cls, path: Path, version: str = OLDEST) -> "Description":
        """Read the description of the oldest version; `x-github-breaking-changes` give a newer one."""
        document = json.loads(path.read_text(encoding="utf-8"))
        _mend(document)
        return cls(document if version == OLDEST else _upgrade(document, version))

    def check_request(self, method: str, path: str, query: Mapping[str, str], body: object) -> list[str]:
        """Check the operation, its parameters and its JSON (`None`: no body)."""
        operation = self._find(method, path)
        if operation is None:
            return [] if UNDESCRIBED.fullmatch(path) else [f"{method} {path}: no such operation"]
        problems = self._check_parameters(operation, path, query)
        request = operation.content.get("requestBody")
        if body is None:
            missing = request is not None and request.get("required", False)
            problems += ["a body is required"] if missing else []
        elif request is None:
            problems += [] if body == {} else ["no body is described"]
        else:
            problems += self._check(body, f"{operation.pointer}/requestBody/content/application~1json/schema")
        return [f"{method} {path}: {problem}" for problem in problems]

    def check_response(self, method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> list[str]:
        """Check status, content type and JSON of an answer."""
        operation = self._find(method, path)
        if operation is None:
            return []
        problems = self._check_answer(operation, status, headers, body)
        return [f"{method} {path} -> {status}: {problem}" for problem in problems]

    def _check_answer(self, operation: Operation, status: int, headers: Mapping[str, str], body: bytes) -> list[str]:
        if str(status) not in operation.content["responses"]:
            tolerated = status in TOLERATED or status in SERVER_ERRORS
            return [] if tolerated else ["no such status"]
        pointer = f"{operation.pointer}/responses/{status}"
        response = operation.content["responses"][str(status)]
        if "$ref" in response:
            pointer = response["$ref"].removeprefix("#")
            response = self._look_up(pointer)
        if "content" not in response:
            return [] if not body else ["a body where none is described"]
        if not headers.get("content-type", "").startswith("application/json"):
            return [f"content type {headers.get('content-type')!r}"]
        try:
            value = json.loads(body)
        except ValueError:
            return ["not JSON"]
        return self._check(value, f"{pointer}/content/application~1json/schema")

    def _check_parameters(self, operation: Operation, path: str, query: Mapping[str, str]) -> list[str]:
        match = operation.path.fullmatch(path)
        assert match is not None
        given = {"path": {k: unquote(v) for k, v in match.groupdict().items()}, "query": dict(query)}
        problems, known = [], set()
        for index, parameter in enumerate(operation.content.get("parameters", [])):
            pointer = f"{operation.pointer}/parameters/{index}"
            if "$ref" in parameter:
                pointer = parameter["$ref"].removeprefix("#")
            described = self._look_up(pointer)
            known.add(described["name"])
            text = given.get(described["in"], {}).get(described["name"])
            if text is not None:
                integer = described["schema"].get("type") == "integer" and text.lstrip("-").isdecimal()
                problems += self._check(int(text) if integer else text, f"{pointer}/schema")
        problems += [f"query parameter {name!r} is not described" for name in query if name not in known]
        return problems

    def _check(self, value: object, pointer: str) -> list[str]:
        validator = self._validators.get(pointer)
        if validator is None:
            validator = self._validators[pointer] = OAS30Validator(
                {"$ref": f"{BASE}#{pointer}"},
                registry=self._registry,
                format_checker=OAS30Validator.FORMAT_CHECKER,
            )
        return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]

    def _find(self, method: str, path: str) -> Operation | None:
        return next((o for o in self._operations if o.method == method and o.path.fullmatch(path)), None)

    def _look_up(self, pointer: str) -> Any:
        value: Any = self._document
        for part in pointer.strip("/").split("/"):
            name = part.replace("~1", "/").replace("~0", "~")
            value = value[int(name) if isinstance(value, list) else name]
        return value


def _operations(document: dict[str, Any]) -> Iterable[Operation]:
    for template, item in document["paths"].items():
        path = re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)))
        for method, content in item.items():
            pointer = f"/paths/{template.replace('~', '~0').replace('/', '~1')}/{method}"
            yield Operation(method.upper(), template, path, pointer, content)


def _mend(document: dict[str, Any]) -> None:
    """Correct what is wrong in the description itself; its own examples fail there."""
    listed = document["paths"]["/app/installations"]["get"]["responses"]["200"]
    account = listed["content"]["application/json"]["schema"]["items"]["properties"]["account"]
    if "allOf" in account:  # no account is a user and an enterprise at once
        account["anyOf"] = account.pop("allOf")
    # `nullable` without a type has no effect in OpenAPI 3.0.3, and GitHub does mean it.
    for nullable in (account, document["components"]["schemas"]["installation"]["properties"]["account"]):
        nullable["anyOf"].append({"type": "object", "nullable": True, "enum": [None]})


def _upgrade(value: Any, version: str) -> Any:
    """Apply the breaking changes up to `version`: each is a JSON merge patch of the object it stands in."""
    if isinstance(value, list):
        return [_upgrade(item, version) for item in value]
    if not isinstance(value, dict):
        return value
    for change in value.get("x-github-breaking-changes", []):
        if change["version"] <= version and isinstance(change["patch"], dict):
            value = _merge(value, change["patch"])
    return {name: _upgrade(item, version) for name, item in value.items()}


def _merge(value: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    merged = dict(value) if isinstance(value, dict) else {}
    for name, change in patch.items():
        if change is None:
            merged.pop(name, None)
        else:
            merged[name] = _merge(merged.get(name), change)
    return merged
