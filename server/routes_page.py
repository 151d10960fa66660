"""`/`: the chat page, for people. It holds no data and asks the API for all of it, with the user's key."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from remuda.server.api_keys import CHAT_PAGE
from remuda.server.static_page import StaticPage


def page_routes() -> APIRouter:
    """The route."""
    page = StaticPage("chat/page.html")
    router = APIRouter(include_in_schema=False)

    @router.get(CHAT_PAGE)
    async def show_page() -> HTMLResponse:
        """A chat, in a browser."""
        return page.answer()

    return router
