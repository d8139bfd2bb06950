"""Errors as HTTP tells them: one table from the kinds of PefxError to statuses, and OpenAI's form of an error."""

import math
import re

import msgspec
from starlette.responses import Response

from pefx.errors import PefxError
from pefx.http.objects import ErrorAnswer, ErrorDetail

# What is not here is a fault of the server: 500.
STATUS = {
    "bad_name": 400,
    "invalid_input": 400,
    "invalid_json": 400,
    "invalid_request": 400,
    "prompt_too_long": 400,
    "token_out_of_range": 400,
    "too_long": 400,
    "no_key": 401,
    "forbidden": 403,
    "read_only": 403,
    "not_exposed": 404,
    "not_found": 404,
    "retired": 404,
    "unknown_policy": 404,
    "unknown_revision": 404,
    "wrong_method": 405,
    "conflict": 409,
    "wrong_stage": 409,
    "body_too_long": 413,
    "wrong_media_type": 415,
    "wrong_host": 421,
    "wrong_base": 422,
    "wrong_form": 422,
    "wrong_rank": 422,
    "wrong_spec": 422,
    "wrong_target": 422,
    "busy": 429,
    "rate_limited": 429,
    "client_gone": 499,
    "damaged": 500,
    "engine_failed": 500,
    "not_finite": 500,
    "closed": 503,
    "draining": 503,
    "engine_down": 503,
    "no_catalog": 503,
    "no_permission": 503,
    "slow_client": 503,
    "storage": 503,
    "timeout": 504,
}
TYPE = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CATALOG = "the catalog cannot be read at the moment; ask again later"
# Said instead of the error's own message, which is for the log: it names places of the server.
TOLD = {
    "storage": CATALOG,
    "no_permission": CATALOG,
    "no_catalog": CATALOG,
    "closed": CATALOG,
    "damaged": "the weights of this model are damaged in the catalog; ask for another revision of it",
    "engine_failed": "the engine failed, and this request with it; the log of the server says why",
}
# OpenAI's names for what it names too; else the code is the kind.
CODE = {"unknown_policy": "model_not_found", "no_key": "invalid_api_key", "rate_limited": "rate_limit_exceeded"}
INTERNAL = "the server failed at this request; its log says why"
FIELD = re.compile(r"field '([^']*)'")


class Later(PefxError):
    """What may be asked again in `seconds`."""

    def __init__(self, message: str, kind: str, seconds: float):
        super().__init__(message, kind)
        self.seconds = seconds


def status_of(error: PefxError) -> int:
    return STATUS.get(error.kind, 500)


def told(error: Exception) -> ErrorAnswer:
    """The error in OpenAI's form; `param` is the field that its message names."""
    if not isinstance(error, PefxError):
        return ErrorAnswer(ErrorDetail(INTERNAL, "server_error", None, "internal"))
    status = status_of(error)
    message = TOLD.get(error.kind) or (str(error) if error.kind in STATUS else INTERNAL)
    kind = TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    field = FIELD.search(message) if status == 400 else None
    param = "model" if error.kind == "unknown_policy" else field and field[1]
    return ErrorAnswer(ErrorDetail(message, kind, param, CODE.get(error.kind, error.kind)))


def refusal(error: Exception) -> Response:
    """The answer to a request that failed."""
    status = status_of(error) if isinstance(error, PefxError) else 500
    headers = {}
    if isinstance(error, Later) or (isinstance(error, PefxError) and error.retryable) or status == 503:
        headers["retry-after"] = str(max(1, math.ceil(getattr(error, "seconds", 1))))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return Response(msgspec.json.encode(told(error)), status, headers, media_type="application/json")
