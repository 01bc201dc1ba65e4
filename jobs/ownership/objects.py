"""Small files beside the tables, on a disk or in an object store; a conditional write fails if the file exists."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, ObjectStore, from_url

from jobs.config.addresses import is_url
from jobs.config.window import ConfigError

if TYPE_CHECKING:  # the library has these names for type checkers alone
    from obstore.store import ClientConfig, RetryConfig

# A store that does not answer is reported after one or two minutes; by default the library tries for many minutes.
PATIENCE: ClientConfig = {"connect_timeout": "10s", "timeout": "30s"}
RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=60)}


class ObjectStoreError(RuntimeError):
    """The folder of the lake cannot be read or written; the message names folder and file."""


@dataclass(frozen=True)
class Objects:
    """The files under one folder or URI.

    Attributes:
        root: Folder or URI, for messages.
        store: Place of the files. Each write is atomic: readers see all of a file or nothing.
    """

    root: str
    store: ObjectStore

    def create(self, name: str, content: bytes) -> bool:
        """Make a file unless it exists, by one conditional write; returns whether this call made the file."""
        with self._errors(name):
            try:
                obstore.put(self.store, name, content, mode="create")
            except AlreadyExistsError:
                return False
        return True

    def replace(self, name: str, content: bytes) -> None:
        """Write a file, whether it exists or not."""
        with self._errors(name):
            obstore.put(self.store, name, content, mode="overwrite")

    def read(self, name: str) -> bytes | None:
        """Content of a file; None if there is no file."""
        with self._errors(name):
            try:
                return bytes(obstore.get(self.store, name).bytes())
            except FileNotFoundError:
                return None

    def age_seconds(self, name: str) -> float | None:
        """Seconds since a file was written, by this machine's clock; None if there is no file."""
        with self._errors(name):
            try:
                return time.time() - obstore.head(self.store, name)["last_modified"].timestamp()
            except FileNotFoundError:
                return None

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted."""
        with self._errors(folder):
            return sorted(found["path"] for part in obstore.list(self.store, folder) for found in part)

    def delete(self, name: str) -> None:
        """Delete a file, if it exists."""
        with self._errors(name):
            try:
                obstore.delete(self.store, name)
            except FileNotFoundError:
                return

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            # the first line of a store's error has the reason; the many other lines are details of the library
            raise ObjectStoreError(f"{self.root}, file {name}: {str(error).splitlines()[0]}") from error


def _client_options() -> ClientConfig:
    """Options of the connection. They replace those of the environment, so the option that deltalake reads is kept."""
    may_be_http = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("1", "true")
    return {**PATIENCE, "allow_http": may_be_http}


def objects_of(root: str) -> Objects:
    """The files under a folder or URI; the first write makes a missing folder.

    Raises:
        ConfigError: The URI has a scheme without conditional writes.
    """
    if not is_url(root):
        return Objects(root, LocalStore(Path(root).absolute(), mkdir=True))
    try:
        return Objects(root, from_url(root, client_options=_client_options(), retry_config=RETRIES))
    except BaseError as error:
        raise ConfigError(
            f"paths.lake = {root!r}: expected a folder or a URI with s3://, gs://, az:// or abfss://, where a file can "
            f"be made only if it is not there; {str(error).splitlines()[0]}"
        ) from error
