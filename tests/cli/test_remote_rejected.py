"""Rows that a job left out, by the remote command."""

from __future__ import annotations

import json

from tests.cli.remote_world import Remote
from tests.cli.test_remote_jobs import done
from tests.service.world import World


def test_export_of_what_was_left_out(remote: Remote, world: World) -> None:
    job = done(remote, world, "--set", "select.threshold=0.9")
    code, out, err = remote("export", job, "--format", "jsonl", "--split", "rejected", "--output", "-")
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    with world.client() as client:
        dataset = client.get(f"/jobs/{job}").json()["dataset"]
        assert len(rows) == client.get(f"/datasets/{dataset}").json()["rejected"] > 0
    assert "below_threshold" in {row["reason"] for row in rows}
    kept = remote("export", job, "--format", "jsonl", "--output", "-")[1].splitlines()
    assert {row["reason"] for row in map(json.loads, kept)} == {"gold", "kept"}
    assert not {row["reason"] for row in rows} & {"gold", "kept"}
    assert not {row["id"] for row in rows} & {json.loads(line)["id"] for line in kept}
