"""An S3 bucket, or anything that speaks its protocol, as a storage; through s3fs.

Conditional writes (`If-None-Match`, `If-Match`) stand in for the rename that object stores lack: two
drivers cannot both take a lease.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from pipeline.storage import Backend

CONNECT_S, READ_S = 5, 20
T = TypeVar("T")


def open_bucket(bucket: str, prefix: str) -> "Backend":
    """The objects under a prefix of a bucket.

    Raises:
        ValueError: s3fs is not installed.
    """
    try:
        import s3fs  # noqa: F401
    except ImportError:
        raise ValueError(
            f"storage s3://{bucket} needs s3fs: pip install 'lewm-sweep[s3]'"
        ) from None
    return _Bucket(bucket, prefix)


class _Bucket:
    """See `pipeline.storage.Backend`."""

    def __init__(self, bucket: str, prefix: str) -> None:
        from s3fs import S3FileSystem

        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._fs: Any = S3FileSystem(
            use_listings_cache=False,
            config_kwargs={
                "connect_timeout": CONNECT_S,
                "read_timeout": READ_S,
                "retries": {"max_attempts": 2},
            },
        )

    def _path(self, key: str) -> str:
        return f"{self._bucket}/{self._prefix}{key}".rstrip("/")

    def check(self) -> None:
        probe = f".probe-{uuid.uuid4().hex}"
        self.write(probe, b"")
        self.remove(probe)

    def exists(self, key: str) -> bool:
        with _os_errors():
            return bool(self._fs.exists(self._path(key)))

    def size(self, key: str) -> int:
        with _os_errors():
            return int(self._fs.info(self._path(key))["size"])

    def names(self, prefix: str) -> list[str]:
        with _os_errors():
            try:
                found = self._fs.ls(self._path(prefix), detail=False)
            except FileNotFoundError:
                return []
        names = [path.rstrip("/").rsplit("/", 1)[-1] for path in found]
        return [name for name in names if not name.startswith(".")]

    def read(self, key: str) -> bytes:
        with _os_errors():
            return bytes(self._fs.cat_file(self._path(key)))

    def write(self, key: str, content: bytes) -> None:
        with _os_errors():
            self._fs.pipe_file(self._path(key), content)

    def put(self, source: Path, key: str) -> None:
        with _os_errors():
            self._fs.put_file(str(source), self._path(key))

    def fetch(self, key: str, target: Path) -> None:
        temp = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with _os_errors():
                self._fs.get_file(self._path(key), str(temp))
            temp.replace(target)
        finally:
            temp.unlink(missing_ok=True)

    def remove(self, key: str) -> None:
        with _os_errors():
            self._fs.rm_file(self._path(key))

    def read_version(self, key: str) -> tuple[bytes, str]:
        async def get() -> tuple[bytes, str]:
            found = await self._fs._call_s3("get_object", **self._names(key))
            return await found["Body"].read(), found["ETag"]

        return self._sync(get)

    def swap(self, key: str, known: str | None, content: bytes) -> bool:
        condition = {"IfNoneMatch": "*"} if known is None else {"IfMatch": known}
        try:
            with _os_errors():
                self._fs.call_s3("put_object", **self._names(key), Body=content, **condition)
        except OSError as error:
            if isinstance(error, FileExistsError | FileNotFoundError) or _is_conflict(error):
                return False
            raise
        return True

    def age_s(self, key: str) -> float:
        with _os_errors():
            head = self._fs.call_s3("head_object", **self._names(key))
        now = parsedate_to_datetime(head["ResponseMetadata"]["HTTPHeaders"]["date"])
        if now.tzinfo is None:
            now = now.replace(tzinfo=UTC)
        return float((now - head["LastModified"]).total_seconds())

    def _names(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{key}"}

    def _sync(self, call: Callable[[], Any]) -> Any:
        from fsspec.asyn import sync

        with _os_errors():
            return sync(self._fs.loop, call)


def _is_conflict(error: BaseException) -> bool:
    """Whether a conditional write was refused because somebody else wrote."""
    cause: BaseException | None = error
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            code = str(response.get("Error", {}).get("Code", ""))
            if code in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return True
        cause = cause.__cause__
    return False


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turns what botocore and its transport raise into OSError, but for missing credentials."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
    from fsspec.exceptions import FSTimeoutError

    try:
        yield
    except NoCredentialsError:
        raise ValueError(
            "no credentials for S3: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
            "AWS_PROFILE, or run where an instance role gives them"
        ) from None
    except (BotoCoreError, ClientError, FSTimeoutError, TimeoutError) as error:
        raise OSError(str(error) or type(error).__name__) from error
