"""The main job: clone, edit, push, fetch, from a machine on which no daemon runs."""

from e2e.conftest import Machine


def test_clone_edit_push_and_fetch_cost_one_mint_for_that_repository_alone(ready: Machine) -> None:
    ready.ghapp("daemon", "stop")
    before = len(ready.github.mints)

    ready.git("clone", "https://github.com/acme/rocket.git")
    checkout = ready.work / "rocket"
    (checkout / "engine.txt").write_text("on\n")
    ready.git("add", "engine.txt", cwd=checkout)
    ready.git("commit", "-m", "Start the engine", cwd=checkout)
    ready.git("push", cwd=checkout)
    ready.git("fetch", cwd=checkout)

    (mint,) = ready.github.mints[before:]
    assert mint.repositories == ("acme/rocket",)
    assert mint.permissions.keys() <= {"contents", "workflows", "metadata"}
    repository = ready.github.named("acme", "rocket")
    assert repository is not None
    assert repository.revision() == ready.git("rev-parse", "HEAD", cwd=checkout).stdout.strip()
