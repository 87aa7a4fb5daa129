"""The README's terminal session, typed as it stands."""

import re

from conftest import ROOT
from e2e.conftest import PERMISSIONS, Machine


def test_the_terminal_session_of_the_readme_works_as_printed(machine: Machine) -> None:
    app = machine.github.add_app("acme-bot", PERMISSIONS)
    machine.github.install(app, "acme", repositories=["rocket"])
    repository = machine.github.add_repository("acme/rocket", files={"README.md": "# Rocket\n"})
    key = machine.home / "acme-bot.pem"
    key.touch(mode=0o600)
    key.write_bytes(app.private_key_pem)
    before = repository.revision()
    (session, *_) = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for name in ("AUTHOR", "COMMITTER"):  # nobody has told git who commits here
        del machine.env[f"GIT_{name}_NAME"], machine.env[f"GIT_{name}_EMAIL"]
    lines = [line.removeprefix("$ ") for line in session.splitlines() if line.startswith("$ ")]
    assert len(lines) == 6
    script = "set -e\n" + "\n".join(lines).replace("4242", str(app.id)) + "\n"

    done = machine.run("sh", "-c", script)

    assert repository.revision() != before
    author = machine.git("log", "-1", "--format=%an", cwd=machine.work / "rocket").stdout
    assert author == "acme-bot[bot]\n"
    assert "acme" in done.stdout
    assert "rocket" in done.stdout
