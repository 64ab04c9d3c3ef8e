"""S3 without static keys: the credentials of the machine's role, as Amazon gives them to pods, tasks and instances."""

import threading
from datetime import UTC, datetime, timedelta

from minio.credentials.credentials import Credentials
from minio.credentials.providers import IamAwsProvider, Provider
from urllib3 import PoolManager
from urllib3.exceptions import HTTPError

from app.storage.store import StorageUnavailable

# A link ends with the credentials that signed it, so they are exchanged long before they expire.
RENEW_BEFORE = timedelta(minutes=10)
RETRY_AFTER = timedelta(seconds=30)


class MachineRole(Provider):
    """For the SDK's `credentials`; the SDK itself asks for new ones when the old ones have ten seconds left."""

    def __init__(self, pool: PoolManager, region: str) -> None:
        self._pool = pool
        self._region = region
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._due_at = datetime.min.replace(tzinfo=UTC)

    def is_due(self) -> bool:
        """Whether `retrieve` would ask the machine."""
        return datetime.now(UTC) >= self._due_at

    def retrieve(self) -> Credentials:
        """Raises StorageUnavailable where the machine has no role, or does not answer, and nothing valid is left."""
        with self._lock:
            if self._credentials is None or self.is_due():
                self._credentials = self._ask()
            return self._credentials

    def _ask(self) -> Credentials:
        self._due_at = datetime.now(UTC) + RETRY_AFTER
        try:
            credentials = IamAwsProvider(http_client=self._pool, region=self._region).retrieve()
        except (HTTPError, OSError, ValueError, KeyError) as error:
            if self._credentials is not None and not self._credentials.is_expired():
                return self._credentials
            raise StorageUnavailable(
                "This machine gives no role to speak with the object storage: set MINIO_ACCESS_KEY and"
                " MINIO_SECRET_KEY, or give the pod, task or instance a role."
            ) from error
        if credentials.expiration is not None:
            expires_at = credentials.expiration.replace(tzinfo=UTC)
            self._due_at = max(self._due_at, expires_at - RENEW_BEFORE)
        return credentials
