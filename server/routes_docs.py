"""`/docs`: one page that lists what `/openapi.json` says. It loads nothing from anywhere else."""

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from remuda.server.static_page import StaticPage


def docs_routes() -> APIRouter:
    """The route."""
    page = StaticPage("docs.html")
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def show_docs() -> HTMLResponse:
        """The API, to read in a browser."""
        return page.answer()

    return router
