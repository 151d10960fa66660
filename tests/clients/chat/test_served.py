"""When the chat gives up the chat template: where a refusal says that there is none, and `/info` does not."""

from collections.abc import Iterator

import pytest

from remuda.clients import Client
from remuda.clients.chat.served import Served
from remuda.clients.errors import BadRequestError, ClientError, NotFoundError, ServerError
from remuda.clients.server_state import ServerInfo

VLLM = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template "
    "if the tokenizer does not define one."
)
TRANSFORMERS = (
    "Cannot use chat template functions because tokenizer.chat_template is not set and no template argument was "
    "passed! For information about writing templates and setting the tokenizer.chat_template attribute, see …"
)
MISTRAL_RS = "Received messages for a model which does not have a chat template. Either use a different model or …"
REMUDA = "this model has no chat template; use /v1/completions"


@pytest.fixture
def client() -> Iterator[Client]:
    """Asks nobody."""
    with Client("http://127.0.0.1:1") as found:
        yield found


@pytest.mark.parametrize("message", [VLLM, TRANSFORMERS, MISTRAL_RS, REMUDA, "No chat template found."])
def test_a_missing_template_is_noticed_once(client: Client, message: str) -> None:
    served = Served(client, "m", None, True)
    assert served.falls_back(BadRequestError(400, message))
    assert not served.has_chat_template
    assert not served.falls_back(BadRequestError(400, message))


@pytest.mark.parametrize(
    "error",
    [
        None,
        ClientError(REMUDA),
        ServerError(500, REMUDA),
        BadRequestError(400, "the chat template cannot render these messages: 'None' has no attribute 'x'"),
        BadRequestError(400, "the last message is empty, or the chat template does not show it as it stands"),
        BadRequestError(400, "chat template is not able to render a system message"),
        BadRequestError(400, "Chat template does not support tools"),
        NotFoundError(404, "no model m"),
    ],
)
def test_other_errors_keep_the_template(client: Client, error: ClientError | None) -> None:
    served = Served(client, "m", None, True)
    assert not served.falls_back(error)
    assert served.has_chat_template


def test_a_template_of_which_info_tells_is_kept(client: Client) -> None:
    served = Served(client, "m", ServerInfo(model="m", slot_bytes=1, has_chat_template=True), True)
    assert not served.falls_back(BadRequestError(400, REMUDA))
    assert served.has_chat_template
