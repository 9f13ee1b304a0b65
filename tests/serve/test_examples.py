"""The OpenAPI document's example requests: every operation with a body has one that works."""

from typing import Any

import httpx2


def test_every_example_is_accepted(http: httpx2.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    conversation = http.post("/v1/conversations", json={}).json()["id"]
    refused = []
    for path, operations in paths.items():
        if "post" not in operations or "501" in operations["post"]["responses"]:
            continue
        body: dict[str, Any] = operations["post"]["requestBody"]["content"]["application/json"]
        example = body.get("example")
        assert example, path
        if "model" in example:
            example["model"] = "test"
        reply = http.post(path.replace("{conversation_id}", conversation), json=example)
        if reply.status_code != 200:
            refused.append((path, reply.text))
    assert refused == []
