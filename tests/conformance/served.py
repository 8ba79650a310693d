"""Convolutions through the service, on the back end that a suite is run for."""

from __future__ import annotations

from typing import Any, NamedTuple

from convolver.client import Answer, Client, Info


class Served(NamedTuple):
    """A service, as its client sees it, and the back end under test."""

    client: Client
    backend: str
    info: Info

    @classmethod
    def by(cls, client: Client, backend: str) -> Served:
        """The service behind this client, on that back end."""
        return cls(client, backend, client.info())

    def asked(self, dtype: str) -> str:
        """What to ask for: the back end under test where it computes this type, else whatever the chooser takes."""
        able = any(dtype in each.dtypes for each in self.info.backends if each.answers_to(self.backend))
        return self.backend if able else "auto"

    def run(self, input: Any, weight: Any, bias: Any = None, **parameters: Any) -> Answer:  # noqa: ANN401 - what Client.run takes
        """`Client.run`, on `asked` of the input's type."""
        asked = self.asked(input.dtype.name)
        answer = self.client.run(input, weight, bias, backend=asked, **parameters)
        assert asked == "auto" or answer.plan.backend.split(":")[0] == asked.split(":")[0]
        return answer
