"""The state of GitHub: everything that exists, and what a test may do to it."""

import secrets
import string
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from threading import RLock
from typing import Literal

from standin import bare
from standin.clock import Clock
from standin.faults import Faults
from standin.journal import Journal, Mint, Request
from standin.keys import KeyPool
from standin.limits import Limits
from standin.model import Account, AccountType, App, Installation, Permissions, Repository, Token
from standin.settings import Settings


FIRST_APP = 41001  # five digits, as in the tokens that were measured
README = {"README.md": "# A repository\n"}


class World:
    """Owns the state; tests change it from their thread, the server's loop reads it, both under `lock`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lock = RLock()
        self.clock = Clock()
        self.settings = Settings()
        self.faults = Faults()
        self.journal = Journal()
        self.limits = Limits(self.settings, self.clock)
        self.violations: list[str] = []
        self.accounts: dict[str, Account] = {}
        self.apps: dict[int, App] = {}
        self.installations: dict[int, Installation] = {}
        self.repositories: dict[int, Repository] = {}
        self.tokens: dict[str, Token] = {}
        self._old_names: dict[str, int] = {}
        self._keys = KeyPool()
        self._account_ids = count(1001)
        self._app_ids = count(FIRST_APP)
        self._installation_ids = count(51_000_001)
        self._repository_ids = count(700_001)

    # What a test does.

    def add_account(self, login: str, account_type: AccountType | Literal["Bot"] = "Organization") -> Account:
        """Return the account of that name, made now if there is none."""
        with self.lock:
            account = self.accounts.get(login.lower())
            if account is None:
                account = Account(next(self._account_ids), login, account_type, self.clock.now())
                self.accounts[login.lower()] = account
            return account

    def add_app(
        self,
        slug: str,
        permissions: Permissions | None = None,
        *,
        owner: str = "acme",
        owner_type: AccountType = "Organization",
    ) -> App:
        """Register an app with one key; `metadata: read` is always among its permissions."""
        with self.lock:
            client_id = "Iv23li" + "".join(secrets.choice(string.ascii_letters) for _ in range(14))
            app = App(
                id=next(self._app_ids),
                client_id=client_id,
                slug=slug,
                owner=self.add_account(owner, owner_type),
                permissions={"metadata": "read", **(permissions or {})},
                created_at=self.clock.now(),
                new_key=self._keys.take,
                name=slug,
            )
            app.add_key()
            self.apps[app.id] = app
            self.add_account(f"{slug}[bot]", "Bot")
            return app

    def install(
        self,
        app: App,
        login: str,
        repositories: Sequence[str] | Literal["all"] = "all",
        permissions: Permissions | None = None,
        account_type: AccountType = "Organization",
    ) -> Installation:
        """Install an app; selected repositories may be added to GitHub later."""
        with self.lock:
            now = self.clock.now()
            installation = Installation(
                id=next(self._installation_ids),
                app=app,
                account=self.add_account(login, account_type),
                permissions=dict(app.permissions if permissions is None else permissions),
                created_at=now,
                updated_at=now,
                everything=repositories == "all",
                awaited=set() if repositories == "all" else {name.lower() for name in repositories},
            )
            self.installations[installation.id] = installation
            for repository in self.repositories.values():
                self._select_awaited(installation, repository)
            return installation

    def uninstall(self, installation: Installation) -> None:
        with self.lock:
            self.installations.pop(installation.id, None)

    def reinstall(self, installation: Installation) -> Installation:
        """Uninstall and install again: the same, under a new id."""
        with self.lock:
            self.uninstall(installation)
            names = sorted({self.repositories[number].name for number in installation.selected})
            return self.install(
                installation.app,
                installation.account.login,
                "all" if installation.everything else [*names, *installation.awaited],
                installation.permissions,
            )

    def suspend(self, installation: Installation) -> None:
        with self.lock:
            installation.suspended_at = installation.updated_at = self.clock.now()

    def unsuspend(self, installation: Installation) -> None:
        with self.lock:
            installation.suspended_at, installation.updated_at = None, self.clock.now()

    def select(self, installation: Installation, repository: Repository) -> None:
        """Add a repository to an installation of selected ones."""
        with self.lock:
            installation.selected.add(repository.id)
            installation.updated_at = self.clock.now()

    def unselect(self, installation: Installation, repository: Repository) -> None:
        with self.lock:
            installation.selected.discard(repository.id)
            installation.updated_at = self.clock.now()

    def request_permissions(self, app: App, permissions: Permissions) -> None:
        """Let the app ask for more; its installations keep what they have until `accept_permissions`."""
        with self.lock:
            app.permissions = {**app.permissions, **permissions}

    def accept_permissions(self, installation: Installation) -> None:
        with self.lock:
            installation.permissions = dict(installation.app.permissions)
            installation.updated_at = self.clock.now()

    def add_repository(
        self,
        full_name: str,
        *,
        private: bool = True,
        files: bare.Files = README,
        account_type: AccountType = "Organization",
    ) -> Repository:
        """Make a repository with one commit; `files={}` leaves it empty."""
        login, _, name = full_name.partition("/")
        with self.lock:
            number = next(self._repository_ids)
            repository = Repository(
                id=number,
                account=self.add_account(login, account_type),
                name=name,
                private=private,
                bare_path=self.directory / "repositories" / f"{number}.git",
                created_at=self.clock.now(),
            )
        bare.create(repository.bare_path, files)
        with self.lock:
            self.repositories[repository.id] = repository
            for installation in self.installations.values():
                self._select_awaited(installation, repository)
        return repository

    def add_wiki(self, repository: Repository, files: bare.Files = README) -> None:
        bare.create(repository.wiki_path, files)

    def commit(self, repository: Repository, files: bare.Files, message: str = "Change", branch: str = "main") -> None:
        """Add a commit, as if somebody else had pushed it."""
        bare.commit(repository.bare_path, files, message=message, branch=branch)

    def rename(self, repository: Repository, full_name: str) -> None:
        """Rename or transfer; the old name goes on working for git."""
        login, _, name = full_name.partition("/")
        with self.lock:
            self._old_names[repository.full_name.lower()] = repository.id
            repository.account, repository.name = self.add_account(login), name

    def delete(self, repository: Repository) -> None:
        with self.lock:
            self.repositories.pop(repository.id, None)

    def revoke(self, token: str) -> None:
        with self.lock:
            self.tokens[token].revoked = True

    @property
    def requests(self) -> list[Request]:
        return self.journal.requests

    @property
    def mints(self) -> list[Mint]:
        return self.journal.mints

    # What the server asks.

    def find_repository(self, owner: str, name: str) -> Repository | None:
        """Find a repository by its present or an old name; a name in use again is the new one's."""
        with self.lock:
            current = self.named(owner, name)
            if current is not None:
                return current
            return self.repositories.get(self._old_names.get(f"{owner}/{name}".lower(), 0))

    def named(self, owner: str, name: str) -> Repository | None:
        wanted = f"{owner}/{name}".lower()
        with self.lock:
            return next((r for r in self.repositories.values() if r.full_name.lower() == wanted), None)

    def installation_on(self, app: App, login: str) -> Installation | None:
        with self.lock:
            for installation in self.installations.values():
                if installation.app is app and installation.account.login.lower() == login.lower():
                    return installation
        return None

    def covered(self, installation: Installation) -> list[Repository]:
        with self.lock:
            return [r for r in self.repositories.values() if installation.covers(r)]

    def live_token(self, value: str) -> Token | None:
        """Return a token unless it is unknown, revoked, expired or of a former installation."""
        with self.lock:
            token = self.tokens.get(value)
            if token is None or token.revoked or token.expires_at <= self.clock.now():
                return None
            return token if token.installation.id in self.installations else None

    def lags(self, token: Token, requests: int) -> bool:
        """Tell whether a token is too fresh for the surface that has seen it `requests` times before."""
        lag = self.settings.lag
        return self.clock.now() < token.created_at + lag.seconds or requests < lag.requests

    @staticmethod
    def _select_awaited(installation: Installation, repository: Repository) -> None:
        if installation.account is repository.account and repository.name.lower() in installation.awaited:
            installation.awaited.discard(repository.name.lower())
            installation.selected.add(repository.id)
