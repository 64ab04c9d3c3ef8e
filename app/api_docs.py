"""`/docs`: the OpenAPI document as a page for people. Its files come from this server, so that it works offline."""

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

# Swagger UI, which the package repeats release by release; no other server is asked for anything.
ASSETS: list[str | tuple[str, str]] = [("fastapi_swagger", "resources")]
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>Easel's API</title>
<link rel="icon" href="/docs/files/favicon-32x32.png">
<link rel="stylesheet" href="/docs/files/swagger-ui.css">
<div id="api"></div>
<script src="/docs/files/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</html>
"""
START = "SwaggerUIBundle({ url: '/openapi.json', dom_id: '#api', deepLinking: true })\n"
POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False)


def install_docs(app: FastAPI) -> None:
    app.include_router(router)
    app.mount("/docs/files", StaticFiles(packages=ASSETS))


@router.get("/docs")
async def get_docs() -> HTMLResponse:
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})


@router.get("/docs/start.js")
async def get_docs_script() -> Response:
    return Response(START, media_type="text/javascript")
