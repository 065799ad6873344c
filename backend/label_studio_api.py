"""Label Studio's REST interface, as far as this server asks it anything."""

from __future__ import annotations

from typing import Any

import requests

from backend.label_studio import AuthorizationError, LabelStudioAuth


class ApiError(ValueError):
    """Label Studio did not give what was asked for; `status` is its HTTP status, None if there was no answer."""

    def __init__(self, sentence: str, status: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status


class LabelStudioApi:
    """Reads with the server's key. Keeps nothing but the key's access token, so any thread may call it."""

    def __init__(self, auth: LabelStudioAuth, timeout: float) -> None:
        self._auth = auth
        self._timeout = timeout

    def get(self, path: str, **query: str | int) -> Any:
        """The decoded JSON of `GET path?query`. Raises `ApiError`."""
        try:
            header = self._auth.header()
            answer = self._get(path, header, query)
            if answer.status_code == 401 and header is not None:
                answer = self._get(path, self._auth.header(refused=header), query)
        except AuthorizationError as error:
            raise ApiError(str(error), 401) from None
        except requests.RequestException as error:
            raise ApiError(f"tried GET {self._auth.url}{path}: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise ApiError(f"tried GET {self._auth.url}{path}: status {answer.status_code}", answer.status_code)
        try:
            return answer.json()
        except ValueError:
            raise ApiError(f"tried GET {self._auth.url}{path}: the answer is not JSON", 200) from None

    def _get(self, path: str, header: str | None, query: dict[str, str | int]) -> requests.Response:
        def authorize(request: requests.PreparedRequest) -> requests.PreparedRequest:
            if header is not None:
                request.headers["Authorization"] = header
            return request

        return requests.get(
            self._auth.url + path, params=query, auth=authorize, timeout=self._timeout, allow_redirects=False
        )
