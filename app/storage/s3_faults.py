"""What an S3 server's faults mean to an operator, each in a sentence with its setting and its fix."""

from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, SSLError
from urllib3.exceptions import TimeoutError as TooSlow


def no_bucket(host: str, bucket: str) -> str:
    return f"The bucket {bucket!r} does not exist at {host}: create it, or correct STORAGE_BUCKET."


def rejection(host: str, bucket: str, action: str, code: str | None) -> str:
    if code == "NoSuchBucket":
        return no_bucket(host, bucket)
    refused = f"The object storage at {host} refused to {action} ({code})"
    if code in {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
        return f"{refused}: check MINIO_ACCESS_KEY, MINIO_SECRET_KEY and this account's rights on the bucket."
    return f"{refused}."


def failure(host: str, error: HTTPError | OSError) -> str:
    reason = error.reason if isinstance(error, MaxRetryError) else error
    if isinstance(reason, SSLError):
        return (
            f"The object storage at {host} cannot be reached over TLS: set MINIO_SECURE=false for a server"
            " without TLS, or SSL_CERT_FILE to the authority that signed its certificate."
        )
    if isinstance(reason, ConnectTimeoutError):
        return f"The object storage at {host} cannot be reached: start it, or correct MINIO_ENDPOINT."
    how = "answered too slowly" if isinstance(reason, TooSlow) else "broke the connection"
    return f"The object storage at {host} {how}."
