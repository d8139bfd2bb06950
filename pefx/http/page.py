"""The chat page: three files that need nothing from elsewhere, and a policy that lets a browser use nothing else."""

from pathlib import Path

from starlette.responses import Response

from pefx.http.api import Asked

FOLDER = Path(__file__).parent / "page_files"
FILES = {
    "/": ("chat.html", "text/html"),
    "/chat.css": ("chat.css", "text/css"),
    "/chat.js": ("chat.js", "text/javascript"),
}
CONTENT = {path: (FOLDER / name).read_bytes() for path, (name, _) in FILES.items()}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)


async def page_file(asked: Asked) -> Response:
    """`GET /` and what it needs."""
    path = asked.request.url.path
    return Response(CONTENT[path], headers={"content-security-policy": POLICY}, media_type=FILES[path][1])
