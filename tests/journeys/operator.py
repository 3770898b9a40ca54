"""A platform engineer: a config file, its mistakes, a server, its keys, its end."""

from __future__ import annotations

import json

import psutil

from tests.journeys.kit import Person, plain, says


def journey(person: Person) -> None:
    """Ends with the server that it started stopped, as Ctrl-C does."""
    with person.step("finds what there is"):
        says(person.run("--help"), "serve", "up", "population", "ctr", "icm", "k8s")
        says(person.run("--version"), "serve-app 0.1.0")
    with person.step("has no server yet, and is told so"):
        says(person.run("population", "list", code=1), "does not answer", "serve-app up")
    config = person.folder / "mine.yaml"
    with person.step("writes a config file, and not over one that is there"):
        says(person.run("init", "mine.yaml"), "wrote mine.yaml")
        says(person.run("init", "mine.yaml", code=2), "mine.yaml", "--force")
    port = person.base_url.rpartition(":")[2]
    right = config.read_text().replace("port: 8000", f"port: {port}")
    with person.step("misspells a field, and is told which was meant"):
        config.write_text(right.replace("num_replicas:", "num_replica:"))
        says(person.run("validate", "mine.yaml", code=2), "num_replica", "did you mean 'num_replicas'")
    with person.step("gives text for a number"):
        config.write_text(right.replace(f"port: {port}", "port: http"))
        says(person.run("validate", "mine.yaml", code=2), "http_options.port")
    with person.step("validates what is right"):
        config.write_text(right)
        says(person.run("validate", "mine.yaml"), "2 replica(s)", person.base_url)
    with person.step("makes a key, lists and revokes it"):
        says(person.run("keys", "create", "alice", "--file", "keys.yaml"), "sk-")
        assert json.loads(person.run("keys", "list", "--file", "keys.yaml", "--json"))[0]["name"] == "alice"
        says(person.run("keys", "revoke", "alice", "--file", "keys.yaml"), "revoked")
    with person.step("starts a server without a model, uses and stops it"):
        child = person.start("up", "mine.yaml", "--simulated")
        child.expect("ready \\(SIMULATED")
        child.expect("Ctrl-C")
        seen = plain(str(child.before))
        says(seen, f"base_url {person.base_url}/v1", "curl -s", "serve-app check")
        checked = person.run("check")
        says(checked, "SIMULATED", "ok replicas: 2 ready")
        assert "FAIL" not in checked
        says(person.run("population", "list"), "job", "state")
        says(person.run("up", "mine.yaml", "--simulated", code=2), "http_options.port", "cannot be used")
        ours = psutil.Process(child.pid).children(recursive=True)
        says(person.interrupt(child, 0), "stopped")
        gone, alive = psutil.wait_procs(ours, timeout=30)
        left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert gone
        assert not left, f"processes outlive the server: {left}"
    with person.step("sees which sizes are ready for Kubernetes, in any folder"):
        says(person.run("k8s", "presets"), "70b-tp8", "405b")
