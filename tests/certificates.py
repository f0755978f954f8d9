"""Certificates for tests: authorities that only the test trusts."""

import ssl
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import trustme


class Files(NamedTuple):
    """PEM files, as settings name them."""

    certificate: Path
    key: Path


class Authority:
    """Signs for 127.0.0.1 and localhost."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._name = name
        self._ca = trustme.CA(organization_name=name)
        self.path = directory / f"{name}-ca.pem"
        self._ca.cert_pem.write_to_path(self.path)

    def issue(
        self,
        name: str,
        *,
        over: Files | None = None,
        key_type: trustme.KeyType = trustme.KeyType.ECDSA,
        until: datetime | None = None,
    ) -> Files:
        """A certificate, in files of its own or over others; without an end it is good for years."""
        made = self._ca.issue_cert("127.0.0.1", "localhost", common_name=name, key_type=key_type, not_after=until)
        files = over or Files(self._directory / f"{name}.pem", self._directory / f"{name}-key.pem")
        made.private_key_pem.write_to_path(files.key)
        files.certificate.write_bytes(b"".join(pem.bytes() for pem in made.cert_chain_pems))
        return files

    @property
    def trusting(self) -> ssl.SSLContext:
        """How a client connects that trusts this authority alone."""
        return ssl.create_default_context(cafile=str(self.path))
