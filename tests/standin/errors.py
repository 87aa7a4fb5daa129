"""The two ways GitHub says no: JSON on the API, one line of text to git."""

from collections.abc import Mapping
from dataclasses import dataclass, field


DOCS = "https://docs.github.com/rest"


@dataclass(eq=False)
class ApiError(Exception):
    """An answer of the API other than success."""

    status: int
    message: str
    documentation_url: str = DOCS
    headers: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, object] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, object]:
        """The JSON; `status` is a string, as GitHub sends it since 2024."""
        return {
            "message": self.message,
            **self.more,
            "documentation_url": self.documentation_url,
            "status": str(self.status),
        }


@dataclass(eq=False)
class GitRefusalError(Exception):
    """An answer to git other than success."""

    status: int
    message: str

    @property
    def headers(self) -> dict[str, str]:
        plain = {"content-type": "text/plain; charset=utf-8"}
        if self.status == 401:  # without the challenge git would not ask its helpers
            return plain | {"www-authenticate": 'Basic realm="GitHub"'}
        return plain
