"""The routes that need no framework, in front of the application: what a worker serves."""

from __future__ import annotations

from starlette.types import ASGIApp

from serving.api.hot_events import HotEvents
from serving.api.hot_lists import HotLists
from serving.api.hot_slates import HotSlates
from serving.api.services import Services


class HotRoutes(HotEvents):
    """ASGI, for any server. Events are answered by any; slates and lists only by our own protocol (`slate_protocol`,
    `list_protocol`): another server asks the application for them."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        super().__init__(app, services)
        self.services = services
        self.slates = HotSlates(services)
        self.lists = HotLists(services)
