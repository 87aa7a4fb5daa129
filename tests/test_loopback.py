"""The local page: who gets an answer, who does not, and that nothing is left of it."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes_process import soon

from ghapp import loopback as loopback_module
from ghapp import page
from ghapp.errors import (
    BrowserLeft,
    BrowserSilent,
    CodeRejected,
    GhappError,
    NotCreated,
    Rebound,
    StateMismatch,
)
from ghapp.loopback import MAX_CONNECTIONS, MAX_HEAD, MAX_NAMES, Loopback, Malformed, parse_head, uid_of


SOON = 5.0


def form(state: str, redirect_url: str) -> page.Page:
    return page.plain(200, "Form", f"{state} {redirect_url}")


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    async with Loopback(form) as opened:
        yield opened


class Reply:
    def __init__(self, data: bytes) -> None:
        head, _, body = data.partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        self.status = int(line.split(" ")[1]) if line else 0
        self.headers = dict(field.split(": ", 1) for field in fields)
        self.text = body.decode()


async def send(loopback: Loopback, data: bytes, *, half_close: bool = False) -> Reply:
    reader, writer = await asyncio.open_connection("127.0.0.1", loopback.port)
    try:
        writer.write(data)
        if half_close:
            writer.write_eof()
        async with asyncio.timeout(SOON):
            return Reply(await reader.read())
    finally:
        writer.close()


async def get(loopback: Loopback, url: str, host: str | None = None, method: str = "GET") -> Reply:
    target = url.removeprefix(f"http://127.0.0.1:{loopback.port}")
    name = f"127.0.0.1:{loopback.port}" if host is None else host
    return await send(loopback, f"{method} {target} HTTP/1.1\r\nHost: {name}\r\nAccept: */*\r\n\r\n".encode())


def callback(loopback: Loopback, code: str = "c0de", state: str | None = None) -> str:
    return f"{loopback.redirect_url}?code={code}&state={loopback.state if state is None else state}"


def refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


async def test_the_page_the_code_and_the_verdict_go_one_way_and_nothing_is_left() -> None:
    async with Loopback(form) as loopback:
        shown = await get(loopback, loopback.url)
        assert shown.status == 200
        assert loopback.state in shown.text
        assert loopback.redirect_url in shown.text
        coming = asyncio.create_task(get(loopback, callback(loopback)))
        assert await loopback.code() == "c0de"
        assert not coming.done()  # the browser waits until we know how it went
        loopback.conclude(page.plain(200, "Done", "It went well."))
        loopback.conclude(page.plain(500, "Not done", "The first word counts."))
    assert "It went well." in (await coming).text
    assert refuses(loopback.port)


async def test_it_listens_on_this_machine_alone_under_a_path_of_its_own(loopback: Loopback) -> None:
    assert loopback._server is not None
    assert [listener.getsockname()[0] for listener in loopback._server.sockets] == ["127.0.0.1"]
    async with Loopback(form) as other:
        assert len({loopback.port, other.port}) == len({loopback.state, other.state}) == 2
        path = loopback.url.partition(str(loopback.port))[2]
        assert len(path) >= 32
        assert not other.url.endswith(path)
        assert len(loopback.state) >= 43


async def test_a_reload_shows_the_page_again(loopback: Loopback) -> None:
    for _ in range(2):
        assert (await get(loopback, loopback.url)).status == 200


@pytest.mark.parametrize("path", ["/", "/favicon.ico", "/created", "/x/created", "//", "/%2e%2e/"])
async def test_every_other_path_is_nothing(loopback: Loopback, path: str) -> None:
    reply = await get(loopback, path)

    assert reply.status == 404
    assert loopback.state not in reply.text
    assert (await get(loopback, f"{loopback.url}/")).status == 404
    assert (await get(loopback, loopback.url[:-1])).status == 404


@pytest.mark.parametrize("method", ["POST", "HEAD", "OPTIONS", "PUT", "get"])
async def test_only_get_is_answered(loopback: Loopback, method: str) -> None:
    reply = await get(loopback, loopback.url, method=method)

    assert reply.status == 405
    assert reply.headers["Allow"] == "GET"


@pytest.mark.parametrize(
    "head",
    [
        b"GET /",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/2",
        b"GET / HTTP/1.1 x",
        b"GET http://127.0.0.1/ HTTP/1.1\r\nHost: a",
        b"GET * HTTP/1.1\r\nHost: a",
        b"GET /\xe4 HTTP/1.1\r\nHost: a",
        b"GET /\x00 HTTP/1.1\r\nHost: a",
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: a",
        b"GET / HTTP/1.1\r\nHost: a\r\n b",
        b"GET / HTTP/1.1\r\nHost : a",
        b"GET / HTTP/1.1\r\nno field\r\nHost: a",
        b"",
    ],
)
async def test_what_is_no_request_is_refused(loopback: Loopback, head: bytes) -> None:
    with pytest.raises(Malformed):
        parse_head(head)
    assert (await send(loopback, head + b"\r\n\r\n")).status == 400


async def test_a_request_that_is_too_long_is_refused(loopback: Loopback) -> None:
    long = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (MAX_HEAD + 100)

    assert (await send(loopback, long + b"\r\n\r\n")).status == 431


async def test_who_says_nothing_or_half_of_it_is_let_go() -> None:
    async with Loopback(form, head_limit=0.05) as loopback:
        for said in (b"", b"GET / HTTP/1.1\r\n"):
            assert (await send(loopback, said)).status == 0
        assert (await send(loopback, b"GET / HT", half_close=True)).status == 0
        assert (await get(loopback, loopback.url)).status == 200


async def test_idle_connections_are_limited_the_oldest_goes_first_and_none_keeps_it_alive() -> None:
    async with Loopback(form) as loopback, contextlib.AsyncExitStack() as idle:
        readers = []
        for _ in range(MAX_CONNECTIONS):
            reader, writer = await asyncio.open_connection("127.0.0.1", loopback.port)
            idle.callback(writer.close)
            readers.append(reader)
        await soon(lambda: len(loopback._open) == MAX_CONNECTIONS)
        assert (await get(loopback, loopback.url)).status == 200
        assert await asyncio.wait_for(readers[0].read(), SOON) == b""
        await soon(lambda: len(loopback._open) == MAX_CONNECTIONS - 1)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < loopback_module.LAST_WORDS
    assert refuses(loopback.port)


# -- who else asks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:{other}", "", "a b"])
async def test_a_foreign_host_is_refused_counted_and_learns_nothing(loopback: Loopback, host: str) -> None:
    name = host.format(port=loopback.port, other=loopback.port % 60000 + 1)

    reply = await get(loopback, "/", name)

    assert reply.status == 403
    assert "(E63)" in reply.text
    assert loopback.state not in reply.text
    assert loopback.url.rpartition("/")[2] not in reply.text
    assert loopback.foreign == {name: 1}
    assert (await get(loopback, loopback.url)).status == 200  # and whoever did that has not ended it


async def test_of_those_who_were_refused_some_are_named_and_all_are_counted(loopback: Loopback) -> None:
    for number in range(MAX_NAMES + 5):
        await get(loopback, "/", f"evil{number}.example")

    assert len(loopback.foreign) == MAX_NAMES + 1
    assert loopback.foreign["others"] == 5


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{other}", "[::1]:{port}", "LOCALHOST"])
async def test_this_machine_under_another_name_is_told_the_right_one(loopback: Loopback, host: str) -> None:
    name = host.format(port=loopback.port, other=loopback.port % 60000 + 1)

    reply = await get(loopback, loopback.url, name)

    assert reply.status == 403
    assert f"open the URL with 127.0.0.1:{loopback.port} in it" in reply.text
    assert loopback.state not in reply.text
    assert (await get(loopback, loopback.url)).status == 200


@pytest.mark.parametrize("which", ["page", "callback"])
async def test_a_rebound_name_that_knows_the_path_ends_it(loopback: Loopback, which: str) -> None:
    url = loopback.url if which == "page" else callback(loopback)

    reply = await get(loopback, url, f"evil.example:{loopback.port}")

    assert reply.status == 403
    assert "(E64)" in reply.text
    assert loopback.state not in reply.text
    with pytest.raises(Rebound):
        await loopback.code()


@pytest.mark.parametrize(("uid", "status"), [(None, 200), (0, 200), (os.geteuid(), 200), (os.geteuid() + 7, 403)])
async def test_another_user_of_this_machine_is_refused(uid: int | None, status: int) -> None:
    async with Loopback(form, owner_of=lambda _client, _server: uid) as loopback:
        reply = await get(loopback, loopback.url)

        assert reply.status == status
        assert (loopback.state in reply.text) == (status == 200)
        assert loopback.foreign == ({} if status == 200 else {f"user {uid}": 1})


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel tells it in /proc/net/tcp, on Linux")
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "mapped"])
def test_the_kernel_tells_whose_a_connection_is(family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(family) as client:
        try:
            client.connect(("::ffff:127.0.0.1" if family == socket.AF_INET6 else "127.0.0.1", server.getsockname()[1]))
        except OSError as error:
            pytest.skip(f"no mapped addresses here: {error.strerror}")
        accepted, address = server.accept()
        with accepted:
            assert uid_of(address, server.getsockname()) == os.geteuid()
            assert uid_of(("127.0.0.1", 1), server.getsockname()) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel tells it in /proc/net/tcp, on Linux")
async def test_another_user_who_knows_the_address_does_not_see_the_page(loopback: Loopback) -> None:
    path = loopback.url.rpartition("/")[2]
    script = (
        f"exec 3<>/dev/tcp/127.0.0.1/{loopback.port};"
        f"printf 'GET /{path} HTTP/1.1\\r\\nHost: 127.0.0.1:{loopback.port}\\r\\n\\r\\n' >&3; cat <&3"
    )
    for uid, status in ((65534, 403), (0, 200)):
        asked = await asyncio.create_subprocess_exec(
            "bash", "-c", script, user=uid, cwd="/", stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(SOON):
            reply = Reply((await asked.communicate())[0])
        assert reply.status == status
        assert (loopback.state in reply.text) == (status == 200)


# -- what comes back -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["", "x", "wrong"])
async def test_a_wrong_state_ends_it_and_its_code_goes_nowhere(loopback: Loopback, state: str) -> None:
    reply = await get(loopback, callback(loopback, state=state))

    assert reply.status == 400
    assert "(E61)" in reply.text
    with pytest.raises(StateMismatch):
        await loopback.code()
    assert (await get(loopback, callback(loopback))).status == 410  # the right one comes too late
    assert (await get(loopback, loopback.url)).status == 410


async def test_a_redirect_without_a_code_ends_it(loopback: Loopback) -> None:
    reply = await get(loopback, f"{loopback.redirect_url}?state={loopback.state}&error=access_denied")

    assert reply.status == 400
    assert "GitHub created no app: access_denied (E67)" in reply.text
    with pytest.raises(NotCreated):
        await loopback.code()


async def test_a_second_use_of_the_code_is_refused_while_the_first_is_under_way(loopback: Loopback) -> None:
    first = asyncio.create_task(get(loopback, callback(loopback)))
    await loopback.code()

    second = await get(loopback, callback(loopback))

    assert second.status == 410
    assert "(E62)" in second.text
    with pytest.raises(CodeRejected):
        loopback.take(callback(loopback))
    loopback.conclude(page.plain(200, "Done", "It went well."))
    assert "It went well." in (await first).text


async def test_an_address_that_was_pasted_is_as_good(loopback: Loopback) -> None:
    for wrong in ("", "hello", callback(loopback, state="x")):
        with pytest.raises(GhappError):
            loopback.take(wrong)

    loopback.take(callback(loopback))

    assert await loopback.code() == "c0de"


async def test_silence_and_a_closed_tab_are_told_apart_and_leave_no_listener() -> None:
    async with Loopback(form) as silent:
        with pytest.raises(BrowserSilent, match=r"nobody opened the page within 0 s"):
            await silent.code(0.01)
        assert (await get(silent, callback(silent))).status == 410
    async with Loopback(form) as left:
        await get(left, left.url)
        with pytest.raises(BrowserLeft, match="nobody came back"):
            await left.code(0.01)
    for port in (silent.port, left.port):
        assert refuses(port)


async def test_ten_minutes_is_the_limit() -> None:
    assert loopback_module.LIMIT == 600
    async with Loopback(form) as loopback:
        waiting = asyncio.create_task(loopback.code())
        loop = asyncio.get_running_loop()
        timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]  # no public way
        ends = pytest.approx(loop.time() + 600, abs=5)
        await soon(lambda: any(timer.when() == ends for timer in timers))
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_whoever_waits_when_it_ends_early_hears_so() -> None:
    async with Loopback(form) as loopback:
        coming = asyncio.create_task(get(loopback, callback(loopback)))
        await loopback.code()
        loopback.fail(NotCreated("too late to count"))
    assert (await coming).status == 410
    assert refuses(loopback.port)


async def test_a_cancelled_wait_leaves_no_listener() -> None:
    ports = []

    async def wait() -> None:
        async with Loopback(form) as loopback:
            ports.append(loopback.port)
            await loopback.code()

    task = asyncio.create_task(wait())
    await soon(lambda: ports)
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert refuses(ports[0])
