"""The Python client: slates, pages, lists and events, for programs that talk to a running Nightjar.

    from infra.client import EventQueue, NightjarClient, make_event

    with NightjarClient("http://127.0.0.1:8000") as client, EventQueue(client) as events:
        slate = client.recommend(user_id="u1", num_results=5)
        events.put(make_event("click", user_id="u1", item_id=slate.items[0].item_id,
                              recommendation_id=slate.recommendation_id))

`AsyncNightjarClient` and `AsyncEventQueue` are the same for asyncio. Standard library and httpx only; nothing of
the rest of Nightjar is imported.
"""

from infra.client.clients import AsyncNightjarClient, NightjarClient
from infra.client.errors import ClientError, RefusedError, UnavailableError
from infra.client.events import make_event, new_event_id
from infra.client.queues import AsyncEventQueue, EventQueue, QueueStatistics
from infra.client.retries import RetryPolicy
from infra.client.values import EventResult, Page, Reason, RecommendedItem, Slate

__all__ = [
    "AsyncEventQueue",
    "AsyncNightjarClient",
    "ClientError",
    "EventQueue",
    "EventResult",
    "NightjarClient",
    "Page",
    "QueueStatistics",
    "Reason",
    "RecommendedItem",
    "RefusedError",
    "RetryPolicy",
    "Slate",
    "UnavailableError",
    "make_event",
    "new_event_id",
]
