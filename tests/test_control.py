"""control.sock: JSON-RPC 2.0, whatever is sent."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fakes_process import soon, talk

from ghapp.control import MAX_LINE, SESSION, ControlServer
from ghapp.errors import GhappError, NotSelected
from ghapp.listener import Listener


async def double(value: int) -> int:
    return value * 2


async def refuse() -> None:
    raise NotSelected("not there", hint="select it")


async def break_down() -> None:
    raise AttributeError("a secret")


async def answer_badly() -> object:
    return object()


NOTED: list[GhappError] = []
SERVER = ControlServer(
    {"double": double, "refuse": refuse, "break": break_down, "badly": answer_badly}, on_error=NOTED.append
)


async def ask(request: object) -> Any:
    line = request if isinstance(request, bytes) else json.dumps(request).encode()
    answer = await SERVER.respond(line)
    return None if answer is None else json.loads(answer)


def request(method: object, **more: object) -> dict[str, object]:
    return {"jsonrpc": "2.0", "id": 7, "method": method} | more


async def test_a_method_is_called_by_name() -> None:
    assert await ask(request("double", params={"value": 4})) == {"jsonrpc": "2.0", "id": 7, "result": 8}


@pytest.mark.parametrize("line", [b"{", b'{"id": NaN}', b"\xff", b"[" * 100_000, b"9" * 5000])
async def test_what_is_not_json_is_32700(line: bytes) -> None:
    answer = await ask(line)

    assert answer["error"]["code"] == -32700
    assert answer["id"] is None


@pytest.mark.parametrize(
    "sent", [[], 4, "x", None, {}, {"jsonrpc": "1.0", "method": "double"}, request(4), request("double", id=[])]
)
async def test_what_is_not_a_request_is_32600(sent: object) -> None:
    assert (await ask(json.dumps(sent).encode()))["error"]["code"] == -32600


async def test_an_unknown_method_is_32601() -> None:
    assert (await ask(request("__class__")))["error"]["code"] == -32601


@pytest.mark.parametrize("params", [[4], "x", {"wrong": 1}, {}, {"value": 1, "more": 2}, {"value": {}}])
async def test_parameters_that_do_not_fit_are_32602(params: object) -> None:
    assert (await ask(request("double", params=params)))["error"]["code"] == -32602


@pytest.mark.parametrize(("name", "kind"), [("break", "AttributeError"), ("badly", "TypeError")])
async def test_a_bug_in_a_method_is_32603_and_its_text_goes_nowhere(
    name: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(request(name))

    assert answer["error"] == {"code": -32603, "message": f"unexpected {kind}"}
    assert answer["id"] == 7
    assert kind in caplog.text
    assert "secret" not in caplog.text


async def test_a_failure_carries_code_and_hint() -> None:
    assert (await ask(request("refuse")))["error"] == {
        "code": -32000,
        "message": "not there",
        "data": {"code": "E20", "hint": "select it"},
    }
    assert NOTED.pop().code == "E20"


async def test_a_notification_is_not_answered_even_if_it_fails() -> None:
    for method in ("double", "refuse", "break", "unknown"):
        assert await ask({"jsonrpc": "2.0", "method": method}) is None


async def test_a_connection_serves_many_requests_in_order_and_survives_a_bug(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "c"), SERVER.handle)
    listener.open()
    lines = [request("break"), {"jsonrpc": "2.0", "method": "double"}, request("double", params={"value": 1})]

    sent = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    answers = [json.loads(line) for line in (await asyncio.to_thread(talk, tmp_path / "c", sent)).splitlines()]

    assert [answer.get("result") for answer in answers] == [None, 2]
    assert await asyncio.to_thread(talk, tmp_path / "c", b"x" * (MAX_LINE + 1)) == b""
    assert b"result" in await asyncio.to_thread(talk, tmp_path / "c", sent)
    listener.stop_accepting()
    await listener.drain(0.1)


async def test_what_nobody_is_there_to_hear_of_is_taken_back_and_nothing_else(tmp_path: Path) -> None:
    taken_back: list[int] = []
    begun, gone = asyncio.Event(), asyncio.Event()

    async def make(number: int) -> int:
        SESSION.get().unheard = lambda: taken_back.append(number)
        return await wait_for_the_end(number)

    async def wait_for_the_end(number: int) -> int:
        if number > 1:
            begun.set()
            await gone.wait()
        return number

    server = ControlServer({"make": make, "wait": wait_for_the_end}, on_error=NOTED.append)
    listener = Listener(str(tmp_path / "c"), server.handle)
    listener.open()
    for last in ("make", "wait"):
        begun.clear()
        gone.clear()
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "c"))
        for method, number in (("make", 1), (last, 2)):
            writer.write(json.dumps(request(method, params={"number": number})).encode() + b"\n")
            if number == 1:
                assert b'"result": 1' in await reader.readline()
        await begun.wait()
        writer.close()
        await writer.wait_closed()
        gone.set()
        await soon(lambda: not listener.connections)

    assert taken_back == [2]  # neither what was heard of, nor what was made before a request that made nothing
    listener.stop_accepting()
