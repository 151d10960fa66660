"""TLS of the listener: good files, files that are none, and a peer that never shakes hands."""

import ssl
from pathlib import Path

import pytest

from remuda.engine.errors import ConfigError
from remuda.server.tls import TlsFiles

TLS = str(Path(__file__).parents[1] / "data" / "tls") + "/"


@pytest.mark.parametrize(("keyfile", "password"), [("key.pem", None), ("key-encrypted.pem", "correct-horse")])
def test_files_that_serve(keyfile: str, password: str | None) -> None:
    context = TlsFiles(TLS + "cert.pem", TLS + keyfile, password).context()
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_one_file_for_both(tmp_path: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(b"".join(Path(TLS + name).read_bytes() for name in ("key.pem", "cert.pem")))
    assert TlsFiles(str(both)).context().cert_store_stats() is not None


@pytest.mark.parametrize(
    ("certfile", "keyfile", "password"),
    [
        ("cert.pem", None, None),
        ("cert.pem", "missing.pem", None),
        ("missing.pem", "key.pem", None),
        ("key.pem", "key.pem", None),
        ("cert.pem", "cert.pem", None),
        ("cert.pem", "key-encrypted.pem", None),
        ("cert.pem", "key-encrypted.pem", "wrong"),
    ],
)
def test_files_that_do_not(certfile: str, keyfile: str | None, password: str | None) -> None:
    files = TlsFiles(TLS + certfile, keyfile and TLS + keyfile, password)
    with pytest.raises(ConfigError, match=r"cannot use .*pem.* for TLS") as caught:
        files.context()
    assert "wrong" not in str(caught.value)
