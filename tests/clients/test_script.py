"""How the script for web pages is served, and which pages may use it."""

from __future__ import annotations

import gzip
import re

import httpx
import pytest

from feature_repo.contracts.environment import Environment
from feature_repo.contracts.errors import DataError
from serving.api.snippet import SOURCE, minified
from serving.settings import ServingSettings
from tests.clients.served import ServedApi
from tests.front_door import FrontDoor

MOST_BYTES = 4000
HTTP = httpx.Client(timeout=60)
EVENT = {"event_id": "e1", "event_type": "search", "user_id": "u1", "timestamp": "2024-03-08T12:00:00Z"}


@pytest.mark.redis
class TestTheScript:
    def test_it_is_less_than_four_kilobytes_on_the_wire(self, api: ServedApi) -> None:
        asks = {"Accept-Encoding": "br, gzip"}
        with HTTP.stream("GET", f"{api.url}/v1/nightjar.js", headers=asks) as response:
            body = b"".join(response.iter_raw())
        assert response.headers["content-type"] == "text/javascript; charset=utf-8"
        assert response.headers["content-encoding"] == "gzip"
        assert int(response.headers["content-length"]) == len(body) < MOST_BYTES
        assert gzip.decompress(body).decode() == minified(SOURCE.read_text(encoding="utf-8"))

    @pytest.mark.parametrize(
        ("accepted", "coding"),
        [
            ("gzip", "gzip"), ("deflate, GZIP;q=0.5", "gzip"), ("*", "gzip"), ("", None), ("br", None),
            ("gzip;q=0", None), ("gzip; q=0.00, br", None), ("identity", None),
        ],
    )  # fmt: skip
    def test_it_is_kept_and_asked_for_again(self, api: ServedApi, accepted: str, coding: str | None) -> None:
        url, asks = f"{api.url}/v1/nightjar.js", {"Accept-Encoding": accepted}
        first = HTTP.get(url, headers=asks)
        assert first.headers.get("content-encoding") == coding
        assert first.headers["cache-control"] == "public, max-age=3600, stale-while-revalidate=86400"
        assert "Accept-Encoding" in first.headers["vary"]
        for known in (first.headers["etag"], f'"x", W/{first.headers["etag"]}', "*"):
            again = HTTP.get(url, headers={**asks, "If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
        assert HTTP.get(url, headers={**asks, "If-None-Match": '"other"'}).text == first.text

    def test_the_codings_have_different_tags(self, api: ServedApi) -> None:
        tags = {
            HTTP.get(f"{api.url}/v1/nightjar.js", headers={"Accept-Encoding": coding}).headers["etag"]
            for coding in ("gzip", "identity")
        }
        assert len(tags) == 2


def test_stripping_lines_changes_no_program() -> None:
    """What `minified` takes for granted of the source."""
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    assert len(lines) > 300
    for line in lines:
        code = line.strip()
        if code.startswith("//"):
            continue
        assert not re.search(r"(?<![:'\"])//|/\*|\*/", code), f"a comment needs its own line: {line}"
        assert code.count("`") % 2 == 0, f"a text over two lines: {line}"
        assert not code.endswith("\\"), line
    assert minified("  // no\n\n  a = 'b' // kept\n\tc()\n") == "a = 'b' // kept\nc()\n"


@pytest.mark.redis
class TestOrigins:
    """On the process itself: whatever stands before the application must not answer without these headers."""

    @pytest.mark.parametrize("kind", ["text/plain;charset=UTF-8", "application/json"])
    def test_a_page_of_an_allowed_origin_can_read_answers(self, api: ServedApi, kind: str) -> None:
        for origin in (api.pages.url, "https://shop.example"):
            headers = {"Origin": origin, "Content-Type": kind}
            for path, content, status in (
                ("/v1/events", b'{"events": [%s]}' % httpx.Request("POST", api.url, json=EVENT).content, 202),
                ("/v1/events", b"no json", 400),
                ("/v1/recommendations", b'{"user_id": "u1"}', 200),
                ("/v1/recommendations", b'{"num_results": 0}', 422),
                ("/v1/no-such-path", b"", 404),
            ):
                response = HTTP.post(api.url + path, content=content, headers=headers)
                assert (path, response.status_code) == (path, status)
                assert response.headers["access-control-allow-origin"] == origin
                exposed = response.headers["access-control-expose-headers"].split(", ")
                assert {"RateLimit-Remaining", "Retry-After", "Traceresponse", "X-Request-Id"} <= set(exposed)
                assert "access-control-allow-credentials" not in response.headers

    def test_a_browser_may_ask_before_it_sends_json(self, api: ServedApi) -> None:
        asks = {
            "Origin": api.pages.url,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        answer = HTTP.options(f"{api.url}/v1/events", headers=asks)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, api.pages.url)
        assert answer.headers["access-control-max-age"] == "7200"
        for wrong in ({"Origin": "https://other.example"}, {"Access-Control-Request-Method": "DELETE"}):
            assert HTTP.options(f"{api.url}/v1/events", headers={**asks, **wrong}).status_code == 400

    @pytest.mark.parametrize("origin", ["https://other.example", "https://shop.example.evil.example", "null"])
    def test_others_cannot(self, api: ServedApi, origin: str) -> None:
        for kind in ("text/plain", "application/json"):
            headers = {"Origin": origin, "Content-Type": kind}
            response = HTTP.post(f"{api.url}/v1/recommendations", content=b'{"user_id": "u1"}', headers=headers)
            assert response.status_code == 200
            assert "access-control-allow-origin" not in response.headers


async def test_without_the_setting_no_page_of_another_origin_can_read(environment: Environment) -> None:
    headers = {"Origin": "https://shop.example"}
    for settings, allowed in (({}, None), ({"cors_origins": "*"}, "*")):
        door = FrontDoor(environment, **settings)
        response = await door.client.post("/v1/events", json=EVENT, headers=headers)
        assert (response.status_code, response.headers.get("access-control-allow-origin")) == (202, allowed)
        door.log.is_down = True  # and a page can read when to come back
        response = await door.client.post("/v1/events", json=EVENT, headers=headers)
        assert (response.status_code, response.headers.get("access-control-allow-origin")) == (503, allowed)
        await door.client.aclose()


def test_the_list_of_origins_is_checked() -> None:
    def allowed(text: str) -> list[str]:
        return ServingSettings.from_mapping({"NIGHTJAR_SERVING_CORS_ORIGINS": text}).allowed_origins()

    assert allowed("") == []
    assert allowed("*") == ["*"]
    assert allowed(" https://Shop.example , http://localhost:3000,") == [
        "https://shop.example",
        "http://localhost:3000",
    ]
    assert allowed("https://a.example:443,http://b.example:80,http://[::1]:443") == [
        "https://a.example", "http://b.example", "http://[::1]:443",
    ]  # fmt: skip
    for wrong in ("shop.example", "https://shop.example/", "https://*.example", "https://a b", "https://", "null"):
        with pytest.raises(DataError, match=r"has origins such as https://shop.example"):
            allowed(wrong)
