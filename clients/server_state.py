"""What servers say of themselves: models, `/info`, `/health`, `/ready`, `/version`, `/metrics`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from remuda.clients.errors import BadAnswerError


class Model(msgspec.Struct, frozen=True):
    """A name that requests may give as `model`."""

    id: str
    created: int = 0
    owned_by: str = ""


class Models(msgspec.Struct, frozen=True):
    """The answer of `/v1/models`."""

    data: list[Model]


class ServerInfo(msgspec.Struct, frozen=True):
    """The answer of `/info`. slot_bytes: of one sequence's state, however long its context is."""

    model: str
    slot_bytes: int
    version: str = ""
    model_type: str = ""
    num_parameters: int | None = None
    num_layers: int | None = None
    hidden_size: int | None = None
    vocab_size: int | None = None
    device: str = ""
    backend: str = ""
    dtype: str = ""
    state_dtype: str = ""
    num_slots: int | None = None
    max_queue: int | None = None
    max_prompt_tokens: int | None = None
    has_chat_template: bool = True


class Health(msgspec.Struct, frozen=True):
    """The answer of `/health` and `/ready`: ready, loading, down, draining or failed; prompts under way."""

    status: str
    num_requests: int = 0

    @property
    def is_ready(self) -> bool:
        """Requests would be served now."""
        return self.status == "ready"


class Version(msgspec.Struct, frozen=True):
    """The answer of `/version`."""

    version: str


@dataclass(frozen=True)
class Sample:
    """One value of a metric."""

    name: str
    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Metrics:
    """All samples of one scrape."""

    samples: tuple[Sample, ...]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def value(self, name: str, **labels: str) -> float | None:
        """The sum of the samples with this name and these labels; None where there is none."""
        values = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(values) if values else None


def parse_metrics(body: bytes) -> Metrics:
    """Of Prometheus' text format. Raises BadAnswerError."""
    # Of the base install, and slow to import.
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(body.decode()))
    except ValueError as error:
        raise BadAnswerError(f"/metrics: not in Prometheus' text format: {str(error)[:200]}") from None
    return Metrics(
        tuple(
            Sample(sample.name, dict(sample.labels), float(sample.value))
            for family in families
            for sample in family.samples
        )
    )
