"""The script for web pages in a real browser, against a real API: pages on one origin, the API on another."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.clients.chromium import REMEDY, Browser, DevToolsError, Page, Profile, find_chromium
from tests.clients.served import ServedApi
from tests.waiting import wait_for

IS_NEEDED = bool(os.environ.get("NIGHTJAR_NEEDS_CHROMIUM"))  # `make test-browser`
pytestmark = [
    pytest.mark.browser,
    pytest.mark.redis,
    pytest.mark.skipif(find_chromium() is None and not IS_NEEDED, reason=REMEDY),
]

ALL = 'data-consent="store train personalize"'
SLATE = """
<section data-nightjar-recommendation="r1" data-nightjar-placement="home">
  <a data-nightjar-item="i3" href="#a" onauxclick="event.preventDefault()">three</a>
  <a data-nightjar-item="i4" href="#b"><b id="inner">four</b></a>
</section>"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.exit(REMEDY, returncode=1)
    browser = Browser(program, tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.stop()


@pytest.fixture
def person(browser: Browser, api: ServedApi) -> Iterator[Profile]:
    """A browser that was never here."""
    profile = browser.new_profile()
    yield profile
    profile.close()
    api.proxy.forget()
    api.proxy.wait_until_idle()


def write_page(api: ServedApi, path: str = "/", body: str = "", attributes: str = ALL, head: str = "") -> str:
    """A page with the script; its address."""
    api.pages.html["/elsewhere"] = "<!doctype html><title>elsewhere</title>"
    api.pages.html[path] = (
        f'<!doctype html><title>shop</title>{head}<script async src="{api.proxy.url}/v1/nightjar.js" {attributes}>'
        f"</script>{body}"
    )
    return api.pages.url + path


def happened(event: dict[str, Any]) -> float:
    """When, by the browser's clock, in seconds."""
    text = event.get("properties", {}).get("original_timestamp", event["timestamp"])
    return datetime.fromisoformat(text).timestamp()


def queued(page: Page) -> list[dict[str, Any]]:
    return [event for key, events in page.storage().items() if key.startswith("nightjar.queue.") for event in events]


def requests(api: ServedApi) -> list[list[str]]:
    return [[event["event_id"] for event in arrived.events] for arrived in api.proxy.arrived]


def test_a_visit(api: ServedApi, person: Profile) -> None:
    """Page view, item view, click and dwell, with all that joins them, and nothing that nobody asked for."""
    early = "<script>(window.nightjar ||= []).push(['track', 'search', {properties: {text: 'lamp'}}])</script>"
    url = write_page(api, "/lamps", SLATE, ALL + ' data-item="i1" data-user="u7"', head=early)
    page = person.open(url + "?mail=a@b.example#top")
    page.click("#inner")
    page.click("[data-nightjar-item=i3]", button="middle")
    time.sleep(1.1)
    page.go(api.pages.url + "/elsewhere")
    events = wait_for(lambda: "user_engagement" in api.types() and api.events(), "dwell is told when the page is left")

    by_type: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_type.setdefault(event["event_type"], []).append(event)
    assert {kind: len(found) for kind, found in by_type.items()} == {
        "page_view": 1, "view_item": 1, "identify": 1, "search": 1, "click": 2, "impression": 1, "user_engagement": 1,
    }  # fmt: skip
    shared = ("anonymous_id", "user_id", "session_id", "page_view_id", "channel")
    assert len({tuple(event[name] for name in shared) for event in events}) == 1
    assert (events[0]["user_id"], events[0]["channel"]) == ("u7", "web")
    assert all(event["consent"] == {"store": True, "train": True, "personalize": True} for event in events)
    assert by_type["page_view"][0]["context"] == {"path": "/lamps"}
    assert "example" not in repr(events)  # neither query nor fragment
    assert by_type["view_item"][0]["item_id"] == "i1"
    assert by_type["search"][0]["properties"]["text"] == "lamp"
    clicks = [
        (c["item_id"], c["recommendation_id"], c["placement"], c["properties"]["position"]) for c in by_type["click"]
    ]
    assert clicks == [("i4", "r1", "home", 2), ("i3", "r1", "home", 1)]
    (dwell,) = by_type["user_engagement"]
    assert dwell["item_id"] == "i1"
    assert 1.0 <= dwell["value"] <= happened(dwell) - happened(by_type["page_view"][0]) + 0.5
    # The next page of the visit: the same person and session, another page view; too short a look has no dwell.
    page = person.open(url)
    page.go(api.pages.url + "/elsewhere")
    views = wait_for(lambda: api.types().count("page_view") == 2 and api.events(), "the second page view")
    second = [event for event in views if event["event_type"] == "page_view"][1]
    assert [second[name] == events[0][name] for name in ("anonymous_id", "session_id", "page_view_id")] == [
        True, True, False,
    ]  # fmt: skip
    assert api.types().count("identify") == 1


def test_an_item_is_seen_when_half_of_it_was_in_view_for_a_second(api: ServedApi, person: Profile) -> None:
    far = "".join(f'<p style="height: 90vh"></p><a data-nightjar-item="i{n}">far</a>' for n in range(4, 9))
    body = f"""
    <div data-nightjar-recommendation="r1" data-nightjar-placement="home">
      <a data-nightjar-item="i1" style="position: fixed; top: -40px; height: 100px; width: 9px">60 %</a>
      <a data-nightjar-item="i2" style="position: fixed; top: -60px; height: 100px; width: 9px; left: 50px">40 %</a>
      <div id="later"></div>{far}<p style="height: 100vh"></p>
    </div>"""
    page = person.open(write_page(api, body=body))
    loaded = page.run("performance.timeOrigin") / 1000
    page.run('later.innerHTML = \'<a data-nightjar-item="i3" style="position: fixed; top: 50px">came later</a>\'')
    glances = {
        number: page.run(
            f"""(async () => {{
            const frames = async () => {{ for (let n = 0; n < 3; n++) await new Promise(requestAnimationFrame) }}
            const started = performance.now()
            document.querySelector('[data-nightjar-item=i{number}]').scrollIntoView({{ block: 'center' }})
            await frames()
            await new Promise(done => setTimeout(done, 150))
            scrollTo(0, 0)
            await frames()
            return performance.now() - started }})()"""
        )
        for number in (4, 5, 6)
    }
    short = [number for number, spent in glances.items() if spent < 900]
    assert short, f"a machine too busy for a short look: {glances}"
    page.run("document.querySelector('[data-nightjar-item=i8]').scrollIntoView({ block: 'center' })")

    def seen() -> dict[str, dict[str, Any]]:
        page.run("nightjar.flush()")
        return {
            line["item_id"]: {**event, **line}
            for event in api.events()
            if event["event_type"] == "impression"
            for line in event["items"]
        }

    impressions = wait_for(lambda: {"i1", "i3", "i8"} <= seen().keys() and seen(), "what stays in view is seen")
    assert not {"i2", *(f"i{number}" for number in short)} & impressions.keys()
    for item, position in (("i1", 1), ("i3", 3), ("i8", 8)):
        told = impressions[item]
        assert (told["recommendation_id"], told["placement"], told["position"]) == ("r1", "home", position)
        assert happened(told) - loaded >= 1.0
    # Once per page view: i1 was in view all the time.
    lines = [line["item_id"] for e in api.events() if e["event_type"] == "impression" for line in e["items"]]
    assert max(Counter(lines).values()) == 1
    # A tile that shows another item from now on is another thing to see.
    page.run("document.querySelector('[data-nightjar-item=i1]').dataset.nightjarItem = 'i11'")
    wait_for(lambda: "i11" in seen(), "the new item of the tile is seen")


def test_nothing_is_sent_or_stored_without_consent(api: ServedApi, person: Profile) -> None:
    page = person.open(write_page(api, body=SLATE, attributes='data-item="i1" data-user="u1"'))
    page.click("#inner")
    assert page.run("nightjar.track('search')") is None
    slate = page.run("nightjar.recommend({ num_results: 2 })")
    assert (slate["fallback_reason"], len(slate["items"])) == ("consent", 2)
    time.sleep(1.2)
    assert (page.storage(), api.proxy.arrived) == ({}, [])

    # Allowed, and taken back while a request is under way: nothing of this person is left, and nothing more is sent.
    api.proxy.always = "hang"
    page.run("nightjar.consent({ store: true, personalize: true })")
    page.run("nightjar.track('search'), nightjar.flush(), 0")
    wait_for(lambda: api.proxy.arrived, "the first events")
    consent = {"store": True, "train": False, "personalize": True}
    assert all(event["consent"] == consent for event in api.proxy.arrived[0].events)
    assert len(queued(page)) >= 3
    page.run("nightjar.consent({ store: false })")
    refusal = {"nightjar.consent": {"store": False, "train": False, "personalize": False}}
    assert page.storage() == refusal
    api.proxy.forget()
    page.click("#inner")
    assert page.run("nightjar.track('search')") is None
    # The next page says that everything is allowed; the person's word stands.
    page = person.open(write_page(api, "/next", body=SLATE))
    page.click("#inner")
    page.go(api.pages.url + "/elsewhere")
    time.sleep(0.3)
    assert (page.storage(), api.proxy.arrived, api.events()) == (refusal, [], [])


def test_a_page_that_comes_back_is_seen_again_and_has_heard_of_the_choice(api: ServedApi, person: Profile) -> None:
    page = person.open(write_page(api))
    back = "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))"
    page.run(back)
    page.run("nightjar.flush()")
    views = [event for event in api.events() if event["event_type"] == "page_view"]
    assert len({event["page_view_id"] for event in views}) == len(views) == 2
    # While it lay in the cache, another page was told no: it hears of no change of the storage then.
    page.run("localStorage['nightjar.consent'] = JSON.stringify({ store: false })")
    page.run(back)
    assert page.run("nightjar.track('search')") is None
    page.go(api.pages.url + "/elsewhere")
    time.sleep(0.2)
    assert (len(api.events()), list(page.storage())) == (2, ["nightjar.consent"])


def test_a_choice_holds_in_every_tab_and_for_what_waits(api: ServedApi, person: Profile) -> None:
    api.proxy.always = "refuse"
    first = person.open(write_page(api, attributes=ALL + ' data-user="u7"'))
    second = person.open(write_page(api, "/second"))
    wait_for(lambda: queued(first), "events wait")
    first.run("nightjar.consent({ store: true })")
    assert first.run("nightjar.track('search')")
    wait_for(
        lambda: not any("user_id" in event or event["consent"]["train"] for event in queued(first)),
        "what waits, here and in the other tab, goes out under the newest choice",
    )
    assert {"identify", "search"} <= {event["event_type"] for event in queued(first)}
    # Nobody may know that before and after are one person.
    assert len({e["anonymous_id"] for e in queued(first) if e["event_type"] in ("identify", "search")}) == 2
    second.run("nightjar.consent({ store: false })")
    wait_for(lambda: first.run("nightjar.track('search')") is None, "the other tab has heard it")
    wait_for(lambda: list(first.storage()) == ["nightjar.consent"], "both have forgotten")


def test_offline_and_a_reload_lose_nothing_and_double_nothing(api: ServedApi, person: Profile) -> None:
    api.proxy.always = "refuse"
    page = person.open(write_page(api, body=SLATE))
    page.click("#inner")
    ids = [page.run("nightjar.track('search')")]
    page.run("nightjar.flush()")
    assert len(queued(page)) >= 3
    page.reload()
    ids.append(page.run("nightjar.track('search')"))
    page.run("nightjar.flush()")
    waiting = wait_for(lambda: len(queued(page)) >= 5 and queued(page), "the old page's events are the new page's")
    ids += [event["event_id"] for event in waiting]
    api.proxy.plan.append("lose answer")  # and the first that comes through does not know it
    api.proxy.always = "pass"
    page.run("dispatchEvent(new Event('online'))")
    wait_for(lambda: not queued(page), "the queue is empty")
    counted = Counter(event["event_id"] for event in api.events())
    assert set(ids) <= counted.keys()
    assert set(counted.values()) == {1}
    assert Counter(api.types()) >= Counter({"page_view": 2, "search": 2, "click": 1})
    # What the browser sent twice, it sent under the same ids.
    assert max(Counter(event_id for sent in requests(api) for event_id in sent).values()) >= 2


def test_a_browser_without_network_sends_when_it_is_back(api: ServedApi, person: Profile) -> None:
    page = person.open(write_page(api))
    page.run("nightjar.flush()")
    page.network(is_offline=True)
    event_id = page.run("nightjar.track('search')")
    page.run("nightjar.flush()")
    assert [event["event_id"] for event in queued(page)] == [event_id]
    page.network()
    wait_for(lambda: "search" in api.types(), "the event arrives")
    wait_for(lambda: not queued(page), "and is known to have arrived")
    assert page.run("nightjar.stats()") == {"queued": 0, "sent": 2, "rejected": 0, "dropped": 0}


def test_batches_and_a_bounded_queue(api: ServedApi, person: Profile) -> None:
    page = person.open(write_page(api))
    page.run("nightjar.flush()")
    ids = page.run("Array.from({ length: 120 }, (_, n) => nightjar.track('search', { properties: { n } }))")
    wait_for(lambda: len(api.events()) == 121, "all arrive without a word from the page")
    sizes = [len(sent) for sent in requests(api)]
    assert sizes[0] == 1
    assert (sum(sizes[1:]), max(sizes), len(sizes) <= 5) == (120, 50, True)
    assert {event["event_id"] for event in api.events()} >= set(ids)
    wait_for(lambda: not queued(page), "the page has heard of all of them")

    api.proxy.always = "refuse"
    page.run("for (let n = 0; n < 600; n++) nightjar.track('search', { properties: { n } }); 0")
    stats = page.run("nightjar.stats()")
    assert (stats["queued"], stats["dropped"], len(queued(page))) == (500, 100, 500)
    assert [queued(page)[n]["properties"]["n"] for n in (0, -1)] == [100, 599]  # the oldest went
    assert page.run("nightjar.track('search', { properties: { text: 'x'.repeat(40000) } })")
    assert page.run("nightjar.stats()")["dropped"] == 101


def test_what_the_server_refuses_is_not_sent_again(api: ServedApi, person: Profile) -> None:
    page = person.open(write_page(api))
    page.run("nightjar.flush()")
    page.run("nightjar.track('no_such_type'), nightjar.track('search'), nightjar.flush()")
    wait_for(lambda: page.run("nightjar.stats().sent") == 2, "the good one went through")
    api.proxy.plan.append((400, {}))
    page.run("nightjar.track('search'), nightjar.flush()")
    # Too large for the server: in halves.
    api.proxy.plan.append((413, {}))
    page.run("for (let n = 0; n < 4; n++) nightjar.track('share', { item_id: 'i' + n }); nightjar.flush()")
    wait_for(lambda: api.types().count("share") == 4, "all halves arrive")
    wait_for(lambda: not queued(page), "nothing waits")
    assert [len(sent) for sent in requests(api)] == [1, 2, 1, 4, 2, 2]
    assert page.run("nightjar.stats()") == {"queued": 0, "sent": 6, "rejected": 2, "dropped": 0}


def test_it_waits_as_long_as_the_server_asks_also_over_pages(api: ServedApi, person: Profile) -> None:
    api.proxy.plan.append((503, {"Retry-After": "1"}))
    page = person.open(write_page(api))
    page.run("nightjar.flush()")
    page.run("nightjar.flush(), dispatchEvent(new Event('online'))")
    page.go(write_page(api, "/next"))  # neither hiding nor the next page is a reason to ask sooner
    page.run("nightjar.flush()")
    wait_for(lambda: api.types().count("page_view") == 2, "both page views arrive")
    first, second = api.proxy.arrived[:2]
    assert second.at - first.at >= 1.0
    assert {event["event_id"] for event in first.events} <= {event["event_id"] for event in second.events}


def test_a_page_that_goes_sends_what_waits(api: ServedApi, person: Profile) -> None:
    page = person.open(write_page(api))
    page.run("nightjar.track('share', { item_id: 'i1' })")
    page.go(api.pages.url + "/elsewhere")
    wait_for(lambda: "share" in api.types(), "sent when the page was left")
    page = person.open(write_page(api))
    page.run("nightjar.track('share', { item_id: 'i2' })")
    page.close()
    wait_for(lambda: api.types().count("share") == 2, "sent when the tab was closed")
    # Never answered in time for a page that is gone: sent again by the next one, counted once.
    person.open(write_page(api)).run("nightjar.flush()")
    counted = Counter(event["event_id"] for event in api.events())
    assert set(counted.values()) == {1}


def test_another_person_on_the_device_is_somebody_else(api: ServedApi, person: Profile) -> None:
    for user in ("u1", "u1", "u2"):
        page = person.open(write_page(api, attributes=f'{ALL} data-user="{user}"'))
        page.run("nightjar.flush()")
        page.go(api.pages.url + "/elsewhere")
    page = person.open(write_page(api))
    page.run("nightjar.identify('u3'), nightjar.flush()")
    events = wait_for(lambda: len(api.events()) == 7 and api.events(), "all arrive")
    told = [(event["event_type"], event.get("user_id"), event["anonymous_id"]) for event in events]
    first, second, third = told[0][2], told[3][2], told[6][2]
    assert told == [
        ("page_view", "u1", first), ("identify", "u1", first), ("page_view", "u1", first),
        ("page_view", "u2", second), ("identify", "u2", second), ("page_view", None, second), ("identify", "u3", third),
    ]  # fmt: skip
    assert len({first, second, third}) == 3


def test_a_slate_its_views_of_one_page_and_who_it_is(api: ServedApi, person: Profile) -> None:
    page = person.open(write_page(api))
    page.run("nightjar.identify('u1'), nightjar.identify('u1'), 0")
    slate = page.run("nightjar.recommend({ num_results: 2, placement: 'start' })")
    assert [item["item_id"] for item in slate["items"]] == ["i0", "i1"]
    assert (slate["fallback_level"], slate["placement"]) == ("personal", "start")
    with pytest.raises(DevToolsError, match="num_results"):
        page.run("nightjar.recommend({ num_results: 0 })")
    page.run("nightjar.page({ item_id: 'i5' }), nightjar.identify(null), 0")
    page.run("nightjar.track('search'), nightjar.flush()")
    events = wait_for(lambda: "search" in api.types() and api.events(), "all arrive")
    assert Counter(api.types()) == Counter({"page_view": 2, "identify": 1, "view_item": 1, "search": 1})
    by_type = {event["event_type"]: event for event in events}  # of page views the second
    assert by_type["identify"]["user_id"] == by_type["view_item"]["user_id"] == "u1"
    assert by_type["page_view"]["page_view_id"] == by_type["view_item"]["page_view_id"]
    assert by_type["identify"]["page_view_id"] != by_type["view_item"]["page_view_id"]
    assert "user_id" not in by_type["search"]
    assert by_type["search"]["anonymous_id"] != by_type["identify"]["anonymous_id"]
