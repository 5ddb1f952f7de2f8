"""What a client is told when a request fails: a status, and a body in the shape of OpenAI's errors."""

from __future__ import annotations

from typing import Any

from mmedge.errors import MmedgeError, TooLong, WrongOption

_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that fails.

    Args:
        status: Of HTTP.
        message: What is wrong, in one line.
        code: A word for programs.
        param: The field of the request that is wrong.
        retry_after: Seconds after which it may work.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param, self.retry_after = status, message, code, param, retry_after

    def body(self) -> dict[str, Any]:
        """Return the body of the response."""
        kind = _TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        """Return the headers that it adds to the response."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Return the error of a request that is wrong."""
    return ApiError(400, message, code, param)


def refused(error: MmedgeError, question: str, within: str) -> ApiError:
    """Return the error of a request that the student refuses.

    Args:
        error: Why.
        question: The field that holds the question.
        within: What stands before the names of mmedge's own fields.
    """
    message = f"{error.what}; {error.hint}" if error.hint else error.what
    if isinstance(error, TooLong):
        return invalid(message, question, "context_length_exceeded")
    return invalid(message, f"{within}{error.option}" if isinstance(error, WrongOption) else None)


def unsupported(param: str, why: str) -> ApiError:
    """Return the error of a request for something that the bundle or the server cannot do."""
    return ApiError(400, f"{param} is not supported: {why}", "unsupported_parameter", param)
