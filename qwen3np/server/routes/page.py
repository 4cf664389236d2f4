"""Pages for people: /ui to try the models, /docs and /redoc of the API. They need nothing from elsewhere."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

UI = (Path(__file__).parents[1] / "page" / "ui.html").read_text(encoding="utf-8")
# Swagger UI and ReDoc write styles and start by a script within the page. ReDoc would load a logo from its
# maker's host, and Swagger UI a validator's badge: img-src says no.
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; worker-src blob:"
)
ASSETS = "/static-offline-docs"

router = APIRouter(include_in_schema=False)


def only_its_own(page: str) -> str:
    """Return the Content-Security-Policy by which only a page's own script and style count."""

    def hashes(tag: str) -> str:
        contents = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = [b64encode(hashlib.sha256(content.encode()).digest()).decode() for content in contents]
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    )


UI_POLICY = only_its_own(UI)


@router.get("/ui")
def ui() -> HTMLResponse:
    """Answer with the page that compares queries and documents."""
    return HTMLResponse(UI, headers={"Content-Security-Policy": UI_POLICY, "Cache-Control": "no-cache"})


def add_docs(app: FastAPI) -> None:
    """Add /docs and /redoc to an app made with docs_url=None and redoc_url=None.

    FastAPI's own load their scripts from a CDN; these have them from the package fastapi_offline.
    """
    app.mount(ASSETS, StaticFiles(packages=[("fastapi_offline", "static")]))

    def urls(request: Request) -> tuple[str, str]:
        root = request.scope.get("root_path", "").rstrip("/")  # behind a proxy that cuts it off
        return f"{root}{app.openapi_url}", f"{root}{ASSETS}"

    @app.get("/docs", include_in_schema=False)
    def docs(request: Request) -> HTMLResponse:
        openapi, assets = urls(request)
        page = get_swagger_ui_html(
            openapi_url=openapi,
            title=app.title,
            swagger_js_url=f"{assets}/swagger-ui-bundle.js",
            swagger_css_url=f"{assets}/swagger-ui.css",
            swagger_favicon_url=f"{assets}/favicon.png",
        )
        page.headers["Content-Security-Policy"] = DOCS_POLICY
        return page

    @app.get("/redoc", include_in_schema=False)
    def redoc(request: Request) -> HTMLResponse:
        openapi, assets = urls(request)
        page = get_redoc_html(
            openapi_url=openapi,
            title=app.title,
            redoc_js_url=f"{assets}/redoc.standalone.js",
            redoc_favicon_url=f"{assets}/favicon.png",
            with_google_fonts=False,
        )
        page.headers["Content-Security-Policy"] = DOCS_POLICY
        return page
