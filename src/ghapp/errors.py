"""Every failure ghapp can name, as one tree.

    GhappError                          never raised itself
    ├── UsageError            E01       the command line or a request to the daemon is wrong
    ├── Declined                        ours by owner, but no token can exist: git goes on to the next helper
    │   ├── NotInstalled      E24       no app is installed on that owner (told to people, never to git)
    │   ├── NotSelected       E20       the installation does not include that repository
    │   ├── Suspended         E23       the installation is suspended
    │   ├── PermissionMissing E25       the installation was not granted a permission
    │   ├── PathMissing       E17       git did not say which repository
    │   ├── ForeignUser       E19       the request names another username
    │   └── OutsideGrant      E71       the grant does not include what was asked for
    └── Failed                          ours, but failed now: git stops instead of prompting
        ├── NetworkFailed     E11       name resolution, connection, time-out
        ├── ProxyFailed       E16       the proxy refused or cannot be reached
        ├── TlsFailed         E14       the certificate does not prove the host
        ├── NotTheApi         E15       somebody else answered: a captive portal, a redirect elsewhere
        ├── ClockRejected     E21       GitHub rejected the JWT's times, and correcting them did not help
        ├── AppRejected       E22       GitHub does not accept this app id or key
        ├── Forbidden         E18       a 403 of its own kind, such as an IP allow list
        ├── RateLimited       E26       GitHub asked us to wait
        ├── GitHubFailing     E27       a 5xx
        ├── BadAnswer         E28       an answer we cannot use, or a token wider than we asked for
        ├── KeyUnavailable    E36       the signer cannot give a signature
        │   ├── KeyringLocked     E31   the keyring is locked
        │   ├── KeyringDismissed  E32   somebody closed the keyring's question
        │   ├── KeyringAbsent     E33   no keyring service on this session
        │   ├── KeyringSilent     E34   the keyring did not answer in time
        │   ├── KeyMissing        E35   the key is not in the keyring
        │   └── KeyringFailed     E37   the keyring failed, or would not protect the key
        ├── DaemonFailed      E41       the daemon cannot be started or reached
        ├── Locked            E42       `ghapp lock` was said, and `ghapp unlock` was not yet
        ├── RuntimeDirectoryRefused E43 the runtime directory, or what lies on a socket's path, is not safe to use
        ├── ConfigError       E51       the configuration cannot be used
        ├── GitConfigFailed   E52       git's configuration cannot be read or written
        ├── StateMismatch     E61       what came back from GitHub's page is not the answer to our question
        ├── CodeRejected      E62       GitHub does not take the code: used, expired or unknown
        ├── ForeignRequest    E63       the local page was asked for under another name, or by another user
        ├── Rebound           E64       another site's name leads to the local page, and its path is known there
        ├── BrowserLeft       E65       the local page was opened, and nobody came back from GitHub
        ├── BrowserSilent     E66       nobody opened the local page
        ├── NotCreated        E67       GitHub's page came back without a code
        ├── KeyLost           E68       the app exists on GitHub, and its key could not be stored
        ├── GrantEnded        E72       the grant has ended
        └── GrantRefused      E73       the grant cannot be made, or there is none of that name

Messages follow one form: lower case, no final period, what failed and on what. A hint is the next command or link.
Codes are stable and listed in SECURITY.md.
"""


class GhappError(Exception):
    """A failure with a stable code, a cause, and what to do next."""

    code = "E00"
    usual_hint = ""
    """What to do next where whoever raises it knows nothing better."""
    stops_git = True
    """Whether git must stop (``quit=1``) instead of asking the next helper or the person at the terminal."""
    remember = 3.0
    """Seconds for which the same request is answered with the same error, without asking GitHub again.

    git asks twice (the C client, then ours), and a hundred submodules ask at once.
    """

    def __init__(self, message: str, *, hint: str = "", inherited: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint
        self.inherited = inherited
        """Whether the cause is in the environment the daemon was started in: one started now may have a better one."""

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class UsageError(GhappError):
    """What was asked for makes no sense."""

    code = "E01"


class Declined(GhappError):
    """No token can exist for this request; whoever is next may have a credential."""

    stops_git = False
    remember = 30.0  # a person who mends it on GitHub's page comes back about then


class NotInstalled(Declined):
    """No configured app is installed on that owner."""

    code = "E24"


class NotSelected(Declined):
    """The app is installed on the owner, but not on that repository."""

    code = "E20"


class Suspended(Declined):
    """The installation is suspended."""

    code = "E23"


class PermissionMissing(Declined):
    """The installation was not granted a permission that is needed."""

    code = "E25"


class PathMissing(Declined):
    """git did not say which repository it asks for."""

    code = "E17"


class ForeignUser(Declined):
    """The request names a username that is not ours."""

    code = "E19"


class OutsideGrant(Declined):
    """The grant whose socket was asked does not include that."""

    code = "E71"
    remember = 0.0  # no call to GitHub is saved, and a grant of the same name may include it a moment later


class Failed(GhappError):
    """We are responsible for this request and could not serve it now."""


class NetworkFailed(Failed):
    """GitHub could not be reached: no address, no connection, no answer in time."""

    code = "E11"


class ProxyFailed(Failed):
    """The configured proxy refused, or does not answer."""

    code = "E16"


class TlsFailed(Failed):
    """The certificate shown does not prove the host."""

    code = "E14"


class NotTheApi(Failed):
    """Something that is not GitHub's API answered."""

    code = "E15"


class ClockRejected(Failed):
    """GitHub rejected the times in the JWT."""

    code = "E21"
    remember = 60.0  # a wrong log-in too, and no clock is mended faster


class AppRejected(Failed):
    """GitHub does not accept the app's id or key."""

    code = "E22"
    remember = 60.0  # GitHub locks everyone out after several wrong credentials, valid ones included


class Forbidden(Failed):
    """GitHub refuses for a reason of its own, given in its words."""

    code = "E18"
    usual_hint = "compare the app's settings on GitHub with what it needs: ghapp doctor"


class RateLimited(Failed):
    """GitHub asked us to wait that many seconds."""

    code = "E26"
    usual_hint = "wait; tokens that are held are still handed out: ghapp leases"

    def __init__(self, message: str, *, wait: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.remember = wait


class GitHubFailing(Failed):
    """GitHub answered with a 5xx."""

    code = "E27"


class BadAnswer(Failed):
    """An answer that cannot be used."""

    code = "E28"
    usual_hint = "try again; if it goes on: ghapp doctor, and https://www.githubstatus.com"


class KeyUnavailable(Failed):
    """The signer could not be opened or did not sign."""

    code = "E36"


class KeyringLocked(KeyUnavailable):
    """The keyring is locked, and nobody is there to unlock it."""

    code = "E31"


class KeyringDismissed(KeyUnavailable):
    """Somebody closed the keyring's question."""

    code = "E32"


class KeyringAbsent(KeyUnavailable):
    """No keyring service runs on this session."""

    code = "E33"


class KeyringSilent(KeyUnavailable):
    """The keyring did not answer in time."""

    code = "E34"


class KeyMissing(KeyUnavailable):
    """The key is not in the keyring."""

    code = "E35"


class KeyringFailed(KeyUnavailable):
    """The keyring failed, or is of a kind that would not protect the key."""

    code = "E37"


class DaemonFailed(Failed):
    """The daemon cannot be started or reached."""

    code = "E41"


class Locked(Failed):
    """Somebody locked ghapp: it answers nothing until it is unlocked."""

    code = "E42"
    remember = 0.0  # what is asked a moment after the unlocking is answered

    def __init__(self, message: str = "ghapp is locked", *, hint: str = "ghapp unlock") -> None:
        super().__init__(message, hint=hint)


class RuntimeDirectoryRefused(Failed):
    """The runtime directory, or what lies on a socket's path there, is not safe to use."""

    code = "E43"


class ConfigError(Failed):
    """The configuration cannot be used."""

    code = "E51"


class GitConfigFailed(Failed):
    """git's configuration cannot be read or written."""

    code = "E52"


class StateMismatch(Failed):
    """What came back from GitHub's page is not the answer to our question."""

    code = "E61"


class CodeRejected(Failed):
    """GitHub does not take the code: it was used, it expired, or nobody ever had it."""

    code = "E62"


class ForeignRequest(Failed):
    """The local page was asked for under another name than its own, or by another user of this machine."""

    code = "E63"


class Rebound(Failed):
    """Another site's name leads to the local page, and whoever used it knew the path."""

    code = "E64"


class BrowserLeft(Failed):
    """The local page was opened, and nobody came back from GitHub."""

    code = "E65"


class BrowserSilent(Failed):
    """Nobody opened the local page."""

    code = "E66"


class NotCreated(Failed):
    """GitHub's page came back without a code."""

    code = "E67"


class KeyLost(Failed):
    """The app exists on GitHub, and its key, which GitHub shows once, could not be stored."""

    code = "E68"


class GrantEnded(Failed):
    """The grant whose socket was asked has ended, by its time or by somebody's hand."""

    code = "E72"
    remember = 0.0  # as above


class GrantRefused(Failed):
    """The grant cannot be made, or there is none of that name."""

    code = "E73"
