"""The git server of a host, asked one thing: whether it knows a token yet.

A fresh token can fail for seconds, and git shows that as "404 Repository not found" and gives up; so we look first.
"""

import base64

import httpx

from ghapp.credential import USERNAME, Repository
from ghapp.errors import GhappError
from ghapp.network import Network, http_client


_NOT_YET = frozenset({401, 403, 404})


class GitEdge:
    """One host's git server."""

    def __init__(self, host: str, network: Network) -> None:
        self._host = host
        self._network = network
        self._client: httpx.AsyncClient | None = None

    async def approach(self) -> None:
        """Open the connection that `sees` will use, while the mint is under way."""
        await self._status("/robots.txt", {})

    async def sees(self, repository: Repository, token: str) -> bool:
        """Tell whether `token` opens `repository`; True also when there is no telling.

        Protocol version 2 makes the answer 147 bytes instead of all refs; the status line is all that is read.
        """
        basic = base64.b64encode(f"{USERNAME}:{token}".encode()).decode()
        headers = {"Authorization": f"Basic {basic}", "Git-Protocol": "version=2"}
        return await self._status(f"/{repository}.git/info/refs?service=git-upload-pack", headers) not in _NOT_YET

    async def aclose(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _status(self, path: str, headers: dict[str, str]) -> int | None:
        try:
            if self._client is None:
                self._client = http_client(self._network, self._host)
            async with self._client.stream("GET", f"https://{self._host}{path}", headers=headers) as answer:
                return answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, GhappError):
            return None  # git itself will meet the same trouble, and names it better
