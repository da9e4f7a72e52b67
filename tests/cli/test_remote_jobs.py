"""A job's life by remote commands: submit, watch, look, steer, fetch."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from afdc.sdk.exceptions import NotReadyError
from afdc.wire.jobs import Job
from tests.cli.remote_world import SUBMIT, Remote
from tests.service.world import World, finished, wait_for


def submitted(remote: Remote, *more: str) -> str:
    code, out, err = remote(*SUBMIT, *more)
    assert code == 0, err
    return out.strip()


def done(remote: Remote, world: World, *more: str) -> str:
    job = submitted(remote, *more)
    with world.client() as client:
        assert finished(client, job)["status"] == "succeeded"
    return job


def test_submit_prints_the_id_alone(remote: Remote, world: World) -> None:
    code, out, err = remote(
        *SUBMIT, "--eval", "eval.jsonl", "--unlabeled", "texts.txt", "--name", "notes", "--seed", "7"
    )
    assert code == 0
    assert out.startswith("job_")
    assert out.count("\n") == 1
    assert "12 texts, 3 labels" in err
    assert f"afdc watch {out.strip()}" in err
    with world.client() as client:
        job = Job.model_validate(finished(client, out.strip()))
    assert (job.name, job.config["seed"], job.config["loop"]["members"]) == ("notes", 7, 2)
    assert job.accuracy is not None
    assert job.unlabeled is not None


def test_watch_shows_stages_and_rounds_and_ends_with_the_result(remote: Remote) -> None:
    code, out, err = remote(*SUBMIT, "--eval", "eval.jsonl", "--watch")
    assert code == 0, err
    job = out.splitlines()[0]
    assert "✓ " in err
    assert "round 1: " in err
    assert "\x1b" not in out + err
    for expected in (
        "succeeded",
        "Accuracy on 6 gold texts",
        "held-out" if "held-out" in out else "round",
        "afdc pull",
    ):
        assert expected in out
    again, shown, replayed = remote("watch", job)
    assert again == 0
    assert "✓ publish the results" in replayed
    assert shown.strip() == "\n".join(out.splitlines()[1:]).strip()


def test_watch_json_is_one_document(remote: Remote) -> None:
    code, out, _ = remote(*SUBMIT, "--watch", "--json")
    found = json.loads(out)
    assert (code, found["status"]) == (0, "succeeded")
    assert [one["round"] for one in found["rounds"]] == list(range(len(found["rounds"])))


def test_an_idempotency_key_makes_one_job(remote: Remote) -> None:
    assert submitted(remote, "--idempotency-key", "k-1") == submitted(remote, "--idempotency-key", "k-1")


def test_dry_run_tells_the_cost_and_leaves_nothing(remote: Remote, world: World) -> None:
    with world.client() as client:
        before = client.get("/seeds").json()["data"]
    code, out, _ = remote(*SUBMIT, "--eval", "eval.jsonl", "--dry-run")
    assert code == 0
    assert "loop.members = 2" in out
    assert "candidates" in out
    assert "total" in out
    code, out, _ = remote(*SUBMIT, "--dry-run", "--json")
    found = json.loads(out)
    assert (found["rows"], found["settings"]["augment"]) == (144, {"rounds": 2, "variants": 6})
    with world.client() as client:
        assert client.get("/seeds").json()["data"] == before


def test_settings_come_from_the_project_file_without_what_is_the_servers(remote: Remote, world: World) -> None:
    Path("afdc.toml").write_text(
        '[run]\nseeds = "seeds.jsonl"\ntask = "task.json"\nmodel = "mine"\n[run.engine]\ndtype = "float32"\n'
        "[run.augment]\nvariants = 6\n[run.loop]\nrounds = 1\nmembers = 2\nfolds = 0\n"
    )
    code, out, err = remote("submit", "--rounds", "2")
    assert code == 0, err
    assert "model and engine of the settings are left out" in err
    with world.client() as client:
        config = client.get(f"/jobs/{out.strip()}").json()["config"]
    assert (config["augment"]["variants"], config["loop"]["rounds"]) == (6, 2)


def test_a_stored_seed_set_can_be_named(remote: Remote, world: World) -> None:
    first = done(remote, world)
    with world.client() as client:
        seeds = client.get(f"/jobs/{first}").json()["seeds"]
    code, out, err = remote("submit", "--seeds", seeds, "--eval", "eval.jsonl", *SUBMIT[5:])
    assert code == 0, err
    assert seeds not in err
    with world.client() as client:
        assert client.get(f"/jobs/{out.strip()}").json()["seeds"] == seeds
    assert remote("submit", "--seeds", seeds, "--task", "task.json")[0] == 2


def test_jobs_lists_and_shows(remote: Remote, world: World) -> None:
    job = done(remote, world, "--name", "one\tof\x1b[31mmany")
    code, out, _ = remote("jobs", "--status", "succeeded", "--limit", "50")
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith(job))
    assert line.split("\t")[1] == "succeeded"
    assert "\x1b" not in out
    assert job in {one["id"] for one in json.loads(remote("jobs", "--json", "--limit", "100")[1])}
    _, out, err = remote("jobs", "--limit", "1")
    assert len(out.splitlines()) == 1
    assert "--limit 2" in err
    code, out, _ = remote("jobs", job)
    assert code == 0
    for expected in ("succeeded", "fake", "kept", "data set", "ds_", "ad_", "spent"):
        assert expected in out
    assert "\x1b" not in out
    assert json.loads(remote("jobs", job, "--json")[1])["rounds"]


def test_pause_resume_cancel_retry(remote: Remote, world: World) -> None:
    job = submitted(remote)
    code, out, _ = remote("pause", job)
    assert code == 0
    assert out.split() in ([job, "pausing"], [job, "paused"])
    with world.client() as client:
        wait_for(lambda: client.get(f"/jobs/{job}").json()["status"] in {"paused", "succeeded"})
    assert remote("resume", job)[1].split()[1] in {"queued", "running"}
    code, out, _ = remote("cancel", job, "--json")
    assert json.loads(out)["status"] in {"cancelling", "cancelled"}
    code, out, err = remote("watch", job)
    assert code == 7
    assert "cancelled" in out
    assert f"was cancelled. Its finished rounds are kept; go on with: afdc retry {job}" in err
    code, out, _ = remote("retry", job)
    assert (code, out) == (0, f"{job}\n")
    assert remote("watch", job)[0] == 0


def test_retry_with_reviews_is_a_new_job(remote: Remote, world: World) -> None:
    job = done(remote, world)
    with world.client() as client:
        dataset = client.get(f"/jobs/{job}").json()["dataset"]
        row = client.get(f"/datasets/{dataset}/rows", params={"source": "generated"}).json()["data"][0]["id"]
        body = {"reviews": [{"row": row, "decision": "accept"}]}
        reviewed = client.post(f"/datasets/{dataset}/reviews", json=body).json()["id"]
    code, out, err = remote("retry", job, "--reviews", reviewed)
    assert code == 0, err
    assert out.strip() != job
    assert json.loads(remote("jobs", out.strip(), "--json")[1])["parent"] == job


def test_pull_brings_both_and_goes_on(remote: Remote, world: World) -> None:
    job = done(remote, world)
    code, out, err = remote("pull", job, "--out", "OUT")
    assert code == 0, err
    assert out.splitlines() == ["OUT/dataset", "OUT/adapter"]
    assert (Path("OUT/dataset") / "README.md").is_file()
    weights = Path("OUT/adapter/adapter_model.safetensors")
    whole = weights.read_bytes()
    weights.unlink()
    Path(f"{weights}.part").write_bytes(whole[:10])
    (Path("OUT/dataset") / "README.md").write_text("torn")
    code, out, _ = remote("pull", job, "--out", "OUT", "--json")
    assert code == 0
    assert json.loads(out)["adapter"]["path"] == "OUT/adapter"
    assert weights.read_bytes() == whole
    assert (Path("OUT/dataset") / "README.md").read_text() != "torn"
    assert remote("pull", job, "--no-adapter")[1].splitlines() == [f"{job}/dataset"]
    assert not Path(job, "adapter").exists()


def test_pull_does_not_mix_data_sets(remote: Remote, world: World) -> None:
    job = done(remote, world)
    Path("OUT/dataset").mkdir(parents=True)
    Path("OUT/dataset/mine.txt").write_text("mine")
    code, out, err = remote("pull", job, "--out", "OUT")
    assert (code, out) == (5, "")
    assert "holds 'mine.txt', which is not of this download. Choose another folder" in err
    assert [path.name for path in Path("OUT/dataset").iterdir()] == ["mine.txt"]


def test_export_of_a_job_and_of_a_data_set(remote: Remote, world: World) -> None:
    job = done(remote, world)
    code, out, err = remote("export", job, "--format", "messages", "--output", "rows.jsonl")
    assert (code, out) == (0, "")
    assert "rows.jsonl" in err
    lines = Path("rows.jsonl").read_text().splitlines()
    assert all(json.loads(line)["messages"] for line in lines)
    dataset = json.loads(remote("jobs", job, "--json")[1])["dataset"]
    code, out, _ = remote("export", dataset, "--format", "messages", "--output", "-")
    assert (code, out.splitlines()) == (0, lines)
    code, out, _ = remote("export", dataset, "--format", "hf", "--output", "all.zip", "--json")
    assert json.loads(out)["bytes"] == Path("all.zip").stat().st_size


def test_review_sends_label_studios_export_once(remote: Remote, world: World) -> None:
    job = done(remote, world)
    assert remote("export", job, "--format", "labelstudio", "--output", "tasks.json")[0] == 0
    task = json.loads(Path("tasks.json").read_text())[0]
    chosen = {"id": "x", "from_name": "verdict", "to_name": "text", "type": "choices", "value": {"choices": ["reject"]}}
    annotation = {"id": 1, "was_cancelled": False, "result": [chosen]}
    Path("done.json").write_text(json.dumps([{**task, "id": 1, "annotations": [annotation]}]))
    code, out, err = remote("review", job, "done.json")
    assert (code, "version 2, made from" in err, "1 reviewed" in err) == (0, True, True), err
    dataset = json.loads(remote("jobs", job, "--json")[1])["dataset"]
    assert remote("review", dataset, "done.json")[1] == out
    assert "version 3, made from" in remote("review", job, "done.json")[2]
    large = [{"history": "x" * (3 << 20)}] * 4  # beyond what other JSON bodies may have
    Path("large.json").write_text(json.dumps([*large, {**task, "annotations": [annotation]}]))
    assert "version 4, made from" in remote("review", job, "large.json")[2]
    assert Path("tasks.json.xml").read_text().startswith("<View")
    code, folder, err = remote("pull", out.strip(), "--out", "reviewed")
    assert (code, Path(folder.strip()).joinpath("data").is_dir()) == (0, True), err
    code, _, err = remote("review", job, "nowhere.json")
    assert code != 0
    assert "nowhere.json" in err


def test_predict_asks_the_server(remote: Remote, world: World) -> None:
    job = done(remote, world)
    code, out, err = remote("predict", "--job", job, "stones ALPHA", "lamper BETA")
    assert code == 0, err
    assert [line.split("\t")[0] for line in out.splitlines()] == ["ALPHA", "BETA"]
    adapter = json.loads(remote("jobs", job, "--json")[1])["adapter"]
    code, out, _ = remote("predict", "--server", world.address, "--adapter", adapter, "--json", "stones ALPHA")
    record = json.loads(out)
    assert (code, record["label"]) == (0, "ALPHA")
    assert set(record) == {"text", "label", "confidence", "probs", "label_logprobs"}
    for wrong in (["--server", world.address], ["--job", job, "--adapter", adapter], ["--job", job, "--model", "m"]):
        assert remote("predict", *wrong, "x")[0] == 2


def test_keys(remote: Remote, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = remote("keys", "create", "--name", "ci", "--scope", "read")
    assert code == 0
    made = out.strip()
    assert made.startswith("afdc_")
    assert made not in err
    listed = remote("keys", "list")[1]
    assert made not in listed
    id = next(line.split("\t")[0] for line in listed.splitlines() if line.endswith("\tci"))
    assert next(one for one in json.loads(remote("keys", "list", "--json")[1]) if one["id"] == id)["scopes"] == ["read"]
    with monkeypatch.context() as own:
        own.setenv("AFDC_API_KEY", made)
        assert remote("jobs")[0] == 0
        assert remote(*SUBMIT)[0] == 3
    assert id in remote("keys", "revoke", id)[2]
    with monkeypatch.context() as own:
        own.setenv("AFDC_API_KEY", made)
        assert remote("jobs")[0] == 3
    assert remote("keys", "create", "--scope", "root")[0] == 2


def test_doctor_looks_at_the_server(remote: Remote, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def checks() -> dict[str, dict[str, object]]:
        return {check["name"]: check for check in json.loads(remote("doctor", "--json")[1])}

    found = checks()
    assert [found[name]["ok"] for name in ("server", "ready", "key")] == [True, True, True]
    assert world.address in str(found["server"]["found"])
    assert "version" in str(found["server"]["found"])
    monkeypatch.setenv("AFDC_API_KEY", "afdc_wrong")
    assert not checks()["key"]["ok"]
    monkeypatch.setenv("AFDC_SERVER", "http://127.0.0.1:9")
    code, out, err = remote("doctor", "--json")
    assert code == 6
    assert "server" in err
    assert "ready" not in {check["name"] for check in json.loads(out)}
    monkeypatch.delenv("AFDC_SERVER")
    assert "server" not in checks()


def test_what_is_not_ready_says_so(remote: Remote) -> None:
    job = submitted(remote)
    code, _, err = remote("pull", job)
    assert code == NotReadyError.exit_code
    assert "no data set yet" in err
    remote("cancel", job)
