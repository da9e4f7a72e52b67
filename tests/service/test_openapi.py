"""The OpenAPI document as a whole: what clients are generated from, and what the API page is made of."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from jsonschema_rs import validator_for

from afdc_server.api.app import make_app
from afdc_server.api.openapi import operations
from afdc_server.api.problems import MEDIA_TYPE as PROBLEM_CONTENT
from tests.service.world import World
from tests.test_docs import DOCS, generator

DOCUMENT: dict[str, Any] = make_app().openapi()
OPERATIONS = {operation["operationId"]: (path, operation) for path, operation in operations(DOCUMENT)}
each_operation = pytest.mark.parametrize("name", OPERATIONS)


def body(name: str) -> dict[str, Any]:
    found: dict[str, Any] = OPERATIONS[name][1].get("requestBody", {}).get("content", {})
    return found


@each_operation
def test_an_operation_has_a_readable_name_a_summary_and_one_tag(name: str) -> None:
    _, operation = OPERATIONS[name]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
    assert operation["summary"]
    assert len(operation["tags"]) == 1


def test_names_are_unique() -> None:
    assert len(OPERATIONS) == sum(1 for _ in operations(DOCUMENT))


@each_operation
def test_a_key_is_asked_for_everywhere_but_for_health(name: str) -> None:
    path, operation = OPERATIONS[name]
    assert operation.get("security") == ([{"HTTPBearer": []}] if path.startswith("/v1/") else None)
    assert operation.get("x-scope") in ({"read", "jobs", "admin"} if path.startswith("/v1/") else {None})


@each_operation
def test_every_error_is_a_problem(name: str) -> None:
    path, operation = OPERATIONS[name]
    errors = {status: reply for status, reply in operation["responses"].items() if status >= "400"}
    if not path.startswith("/v1/"):
        return
    assert {"401", "403", "429", "503"} <= set(errors)
    assert ("404" in errors) or "{" not in path
    for status, reply in errors.items():
        assert list(reply["content"]) == [PROBLEM_CONTENT], status
        assert ("Retry-After" in reply.get("headers", {})) == (status in {"429", "503"})


@each_operation
def test_every_success_says_what_it_is(name: str) -> None:
    _, operation = OPERATIONS[name]
    found = [reply for status, reply in operation["responses"].items() if status < "300"]
    assert found
    assert all(reply["content"] for reply in found)
    assert all(kind["schema"] for reply in found for kind in reply["content"].values())


@each_operation
def test_every_body_has_examples_that_fit_its_schema(name: str) -> None:
    for kind, described in body(name).items():
        shown = [one["value"] for one in described.get("examples", {}).values()]
        shown += [described["example"]] if "example" in described else []
        assert shown, kind
        validator = validator_for({**described["schema"], "components": DOCUMENT["components"]})
        for value in shown:
            validator.validate(value)


def test_bodies_declare_what_can_go_wrong_with_them() -> None:
    for name in OPERATIONS:
        if body(name):
            assert {"408", "413", "415", "422"} <= set(OPERATIONS[name][1]["responses"]), name


def test_streams_are_declared() -> None:
    assert set(OPERATIONS["get_events"][1]["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"application/json", "application/jsonl", "text/csv", "text/plain"} == set(body("create_seeds"))
    assert "text/csv" in OPERATIONS["get_metrics"][1]["responses"]["200"]["content"]


def test_no_schema_is_named_that_is_not_there() -> None:
    named = set(re.findall(r"#/components/schemas/(\w+)", str(DOCUMENT)))
    assert named <= set(DOCUMENT["components"]["schemas"])
    assert "HTTPValidationError" not in DOCUMENT["components"]["schemas"]


def test_links_name_operations() -> None:
    for _, operation in operations(DOCUMENT):
        for reply in operation["responses"].values():
            for link in reply.get("links", {}).values():
                assert link["operationId"] in OPERATIONS


def test_the_server_hands_it_out_without_a_key(world: World) -> None:
    served = httpx.get(f"{world.address}/openapi.json").json()
    assert served == DOCUMENT


def test_the_page_of_the_api_is_up_to_date() -> None:
    page = (DOCS / "http-api.md").read_text(encoding="utf-8")
    assert generator().fill("http-api.md", page) == page, "run python docs/generate.py"
    assert all(f"Operation `{name}`" in page for name in OPERATIONS if OPERATIONS[name][0].startswith("/v1/"))


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/jobs", "GET, POST"),
        ("PATCH", "/jobs/job_" + "0" * 32, "DELETE, GET"),
        ("DELETE", "/jobs/preview", "POST"),
        ("GET", "/predict", "POST"),
        ("HEAD", "/seeds", "GET, POST"),
        ("OPTIONS", "/engine/adapters", "GET, POST"),
    ],
)
def test_another_method_is_told_which_ones_there_are(
    client: httpx.Client, method: str, path: str, allowed: str
) -> None:
    reply = client.request(method, path)
    assert (reply.status_code, reply.headers["Allow"]) == (405, allowed)
    assert reply.headers["content-type"] == PROBLEM_CONTENT


def test_a_path_that_is_not_there_is_a_problem_and_no_redirect(client: httpx.Client) -> None:
    for path in ("/nothing", "/jobs/", "/seeds/x/y/z"):
        reply = client.get(path)
        assert (reply.status_code, reply.json()["code"]) == (404, "not_found")
        assert reply.json()["request_id"] == reply.headers["x-request-id"]
