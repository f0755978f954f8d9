"""The pages of the admin port, with a token."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from gateway.admission import Refusal
from gateway.bearer import admin_token, guard
from gateway.settings import ConfigError

TOKEN = "a-token-of-sixteen-and-more"
PAGES = ["/", "/metrics", "/asyncapi.yaml", "/anything"]


@asynccontextmanager
async def pages(token: str | None, refused: list[Refusal]) -> AsyncIterator[aiohttp.ClientSession]:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="secret", status=503 if request.query else 200)

    app = web.Application(middlewares=[guard(token.encode() if token else None, refused.append)])
    app.router.add_get("/{page:.*}", page)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
            yield session
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer x", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer \u00e9\u4e2d"],
)
async def test_without_the_token_there_is_nothing_to_see(page: str, authorization: str | None) -> None:
    refused: list[Refusal] = []
    headers = {} if authorization is None else {"Authorization": authorization}
    async with pages(TOKEN, refused) as http, http.get(page, headers=headers) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "secret" not in await response.text()
    assert refused == [Refusal.ADMIN_TOKEN]


@pytest.mark.parametrize("page", [*PAGES, "/healthz", "/readyz"])
@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer  {TOKEN} "])
async def test_with_the_token_everything_is_there(page: str, authorization: str) -> None:
    refused: list[Refusal] = []
    async with (
        pages(TOKEN, refused) as http,
        http.get(page, headers={"Authorization": authorization}) as response,
    ):
        assert (response.status, await response.text()) == (200, "secret")
    assert refused == []


async def test_probes_need_no_token_and_are_told_no_reasons() -> None:
    async with pages(TOKEN, []) as http:
        async with http.get("/healthz") as response:
            assert response.status == 200
        async with http.get("/readyz") as response:
            assert (response.status, await response.text()) == (200, "ready")
        async with http.get("/readyz?not") as response:
            assert (response.status, await response.text()) == (503, "not ready")


async def test_without_a_token_to_ask_for_everybody_sees_everything() -> None:
    async with pages(None, []) as http, http.get("/metrics") as response:
        assert (response.status, await response.text()) == (200, "secret")


def test_the_token_is_in_the_environment() -> None:
    assert admin_token("", {}) is None
    assert admin_token("T", {"T": f" {TOKEN}\n"}) == TOKEN.encode()
    for environ in ({}, {"T": ""}, {"T": "x" * 15}):
        with pytest.raises(ConfigError, match="environment T: "):
            admin_token("T", environ)
