"""Deliver the requests about alarms at once."""

from include.streams.operations.alarms import SENDER
from include.streams.operations.outbox_delivery import deliver_route, due_routes
from include.streams.operations.webhooks import Requests


def deliver_alarms() -> int:
    """Deliver requests about alarms at once, for a caller that must not rely on the Dag `deliver_outbox`.

    An unavailable receiver, or one that refuses a request, raises nothing.

    Returns:
        The number of delivered requests.
    """
    routes = [route for route in due_routes() if route.consumer == SENDER]
    return sum(deliver_route(route, Requests()) for route in routes)
