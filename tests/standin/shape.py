"""The JSON of GitHub's objects."""

import base64
from typing import Any

from standin.clock import iso
from standin.model import Account, App, Installation, Repository
from standin.site import Site


USER_LINKS = {
    "followers": "/followers",
    "following": "/following{/other_user}",
    "gists": "/gists{/gist_id}",
    "starred": "/starred{/owner}{/repo}",
    "subscriptions": "/subscriptions",
    "organizations": "/orgs",
    "repos": "/repos",
    "events": "/events{/privacy}",
    "received_events": "/received_events",
}
REPOSITORY_LINKS = {
    "archive": "/{archive_format}{/ref}",
    "assignees": "/assignees{/user}",
    "blobs": "/git/blobs{/sha}",
    "branches": "/branches{/branch}",
    "collaborators": "/collaborators{/collaborator}",
    "comments": "/comments{/number}",
    "commits": "/commits{/sha}",
    "compare": "/compare/{base}...{head}",
    "contents": "/contents/{+path}",
    "contributors": "/contributors",
    "deployments": "/deployments",
    "downloads": "/downloads",
    "events": "/events",
    "forks": "/forks",
    "git_commits": "/git/commits{/sha}",
    "git_refs": "/git/refs{/sha}",
    "git_tags": "/git/tags{/sha}",
    "hooks": "/hooks",
    "issue_comment": "/issues/comments{/number}",
    "issue_events": "/issues/events{/number}",
    "issues": "/issues{/number}",
    "keys": "/keys{/key_id}",
    "labels": "/labels{/name}",
    "languages": "/languages",
    "merges": "/merges",
    "milestones": "/milestones{/number}",
    "notifications": "/notifications{?since,all,participating}",
    "pulls": "/pulls{/number}",
    "releases": "/releases{/id}",
    "stargazers": "/stargazers",
    "statuses": "/statuses/{sha}",
    "subscribers": "/subscribers",
    "subscription": "/subscription",
    "tags": "/tags",
    "teams": "/teams",
    "trees": "/git/trees{/sha}",
}


def node_id(kind: str, number: int) -> str:
    return base64.b64encode(f"{kind}{number}".encode()).decode()


def simple_user(account: Account, site: Site) -> dict[str, Any]:
    path = account.login.replace("[", "%5B").replace("]", "%5D")
    url = f"{site.api}/users/{path}"
    return {
        "login": account.login,
        "id": account.id,
        "node_id": node_id("User", account.id),
        "avatar_url": f"https://avatars.githubusercontent.com/u/{account.id}?v=4",
        "gravatar_id": "",
        "url": url,
        "html_url": f"{site.web}/{path}",
        **{f"{name}_url": url + rest for name, rest in USER_LINKS.items()},
        "type": account.type,
        "user_view_type": "public",
        "site_admin": False,
    }


def public_user(account: Account, site: Site, repositories: int) -> dict[str, Any]:
    moment = iso(account.created_at)
    unknown = ("name", "company", "location", "email", "hireable", "bio", "twitter_username")
    return {
        **simple_user(account, site),
        **dict.fromkeys(unknown),
        "blog": "",
        "public_repos": repositories,
        "public_gists": 0,
        "followers": 0,
        "following": 0,
        "created_at": moment,
        "updated_at": moment,
    }


def enterprise(account: Account, site: Site) -> dict[str, Any]:
    moment = iso(account.created_at)
    return {
        "id": account.id,
        "slug": account.login,
        "name": account.login,
        "node_id": node_id("Enterprise", account.id),
        "avatar_url": f"https://avatars.githubusercontent.com/b/{account.id}?v=4",
        "description": None,
        "website_url": None,
        "html_url": f"{site.web}/enterprises/{account.login}",
        "created_at": moment,
        "updated_at": moment,
    }


def any_account(account: Account, site: Site) -> dict[str, Any]:
    return enterprise(account, site) if account.type == "Enterprise" else simple_user(account, site)


def app(item: App, site: Site, installations: int) -> dict[str, Any]:
    moment = iso(item.created_at)
    return {
        "id": item.id,
        "client_id": item.client_id,
        "slug": item.slug,
        "node_id": node_id("Integration", item.id),
        "owner": any_account(item.owner, site),
        "name": item.name,
        "description": item.description,
        "external_url": item.external_url,
        "html_url": f"{site.web}/apps/{item.slug}",
        "created_at": moment,
        "updated_at": moment,
        "permissions": item.permissions,
        "events": [],
        "installations_count": installations,
    }


def installation(item: Installation, site: Site) -> dict[str, Any]:
    account = item.account
    organization = f"organizations/{account.login}/" if account.type == "Organization" else ""
    return {
        "id": item.id,
        "client_id": item.app.client_id,
        "account": None if item.account_hidden else any_account(account, site),
        "repository_selection": "all" if item.everything else "selected",
        "access_tokens_url": f"{site.api}/app/installations/{item.id}/access_tokens",
        "repositories_url": f"{site.api}/installation/repositories",
        "html_url": f"{site.web}/{organization}settings/installations/{item.id}",
        "app_id": item.app.id,
        "app_slug": item.app.slug,
        "target_id": account.id,
        "target_type": account.type,
        "permissions": item.permissions,
        "events": [],
        "created_at": iso(item.created_at),
        "updated_at": iso(item.updated_at),
        "single_file_name": None,
        "has_multiple_single_files": False,
        "single_file_paths": [],
        "suspended_by": None if item.suspended_at is None else simple_user(account, site),
        "suspended_at": None if item.suspended_at is None else iso(item.suspended_at),
    }


def repository(item: Repository, site: Site, version: str) -> dict[str, Any]:
    url, web = f"{site.api}/repos/{item.full_name}", f"{site.web}/{item.full_name}"
    moment = iso(item.created_at)
    counts = ("forks", "open_issues", "watchers")
    # Removed in the next version of the API.
    older = {"has_downloads": True} if version < "2026-03-10" else {}
    return {
        "id": item.id,
        "node_id": node_id("Repository", item.id),
        "name": item.name,
        "full_name": item.full_name,
        "private": item.private,
        "visibility": "private" if item.private else "public",
        "owner": simple_user(item.account, site),
        "html_url": web,
        "description": None,
        "fork": False,
        "url": url,
        **{f"{name}_url": url + rest for name, rest in REPOSITORY_LINKS.items()},
        "git_url": f"git://{site.host}/{item.full_name}.git",
        "ssh_url": f"git@{site.host}:{item.full_name}.git",
        "clone_url": f"{web}.git",
        "svn_url": web,
        "homepage": None,
        "mirror_url": None,
        "language": None,
        "license": None,
        "size": 1,
        "default_branch": "main",
        "topics": [],
        **dict.fromkeys(counts, 0),
        **{f"{name}_count": 0 for name in (*counts, "stargazers")},
        "has_issues": True,
        "has_projects": True,
        "has_wiki": True,
        "has_pages": False,
        "has_discussions": False,
        **older,
        "archived": False,
        "disabled": False,
        "is_template": False,
        "allow_forking": True,
        "web_commit_signoff_required": False,
        "pushed_at": moment,
        "created_at": moment,
        "updated_at": moment,
        "permissions": {"admin": False, "maintain": False, "push": False, "triage": False, "pull": False},
    }
