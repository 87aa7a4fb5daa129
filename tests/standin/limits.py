"""Rate limits and the lock-out after failed log-ins, all by the stand-in's clock."""

from collections import defaultdict
from dataclasses import dataclass

from standin.clock import Clock
from standin.errors import ApiError
from standin.settings import Settings


HOUR = 3600.0
MINUTE = 60.0
USUAL = 5000  # what GitHub grants an installation an hour, at least
SECONDARY = (
    "You have exceeded a secondary rate limit. Please wait a few minutes before you try again. "
    "For more on scraping GitHub and how it may affect your rights, please review our Terms of Service."
)


@dataclass(slots=True)
class Window:
    """The hour that one caller's requests are counted in."""

    reset: float
    used: int = 0


class Limits:
    """Counts for every caller; touched on the server's loop only."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._windows: dict[str, Window] = {}
        self._points: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
        self._failures: list[float] = []

    def charge(self, caller: str, method: str, endpoint: str) -> dict[str, str]:
        """Count a request and return the headers to show, or raise the refusal."""
        self._charge_points(caller, method, endpoint)
        window = self._window(caller)
        limit = self._settings.primary_limit
        if limit is not None and window.used >= limit:
            raise ApiError(
                self._settings.primary_status,
                f"API rate limit exceeded for {caller}.",
                headers=self.headers(caller),
            )
        window.used += 1
        # Recorded answers to a JWT carried no x-ratelimit headers.
        return self.headers(caller) if limit is not None or caller.startswith("installation") else {}

    def headers(self, caller: str) -> dict[str, str]:
        numbers = self.numbers(caller)
        return {f"x-ratelimit-{key}": str(value) for key, value in numbers.items()} | {"x-ratelimit-resource": "core"}

    def numbers(self, caller: str) -> dict[str, int]:
        window = self._window(caller)
        limit = USUAL if self._settings.primary_limit is None else self._settings.primary_limit
        return {
            "limit": limit,
            "used": min(window.used, limit),
            "remaining": max(0, limit - window.used),
            "reset": int(window.reset),
        }

    def failed_login(self) -> None:
        self._failures.append(self._clock.now())

    def check_lockout(self) -> None:
        """Refuse every log-in, good ones too, after too many bad ones within a minute."""
        allowed = self._settings.login_attempts
        recent = [moment for moment in self._failures if moment > self._clock.now() - MINUTE]
        self._failures = recent
        if allowed is not None and len(recent) >= allowed:
            raise ApiError(403, "Maximum number of login attempts exceeded. Please try again later.")

    def _window(self, caller: str) -> Window:
        now = self._clock.now()
        window = self._windows.get(caller)
        if window is None or window.reset <= now:
            window = self._windows[caller] = Window(reset=now + HOUR)
        return window

    def _charge_points(self, caller: str, method: str, endpoint: str) -> None:
        if self._settings.secondary_limit is None:
            return
        now = self._clock.now()
        spent = [entry for entry in self._points[caller, endpoint] if entry[0] > now - MINUTE]
        spent.append((now, 1 if method in ("GET", "HEAD", "OPTIONS") else 5))
        self._points[caller, endpoint] = spent
        if sum(points for _, points in spent) > self._settings.secondary_limit:
            after = self._settings.secondary_retry_after
            headers = {} if after is None else {"retry-after": str(after)}
            raise ApiError(
                self._settings.secondary_status,
                SECONDARY,
                documentation_url="https://docs.github.com/free-pro-team@latest/rest/overview/"
                "rate-limits-for-the-rest-api#about-secondary-rate-limits",
                headers=headers,
            )
