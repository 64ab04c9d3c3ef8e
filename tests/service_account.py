"""A service account of Google with a private key of our own, by which links to the emulator are signed."""

import json
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

SIGNER = "easel@tests.iam.gserviceaccount.com"
PRIVATE_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def service_account_file(directory: Path) -> Path:
    """For GCS_CREDENTIALS_FILE."""
    pem = PRIVATE_KEY.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = directory / "key.json"
    file.write_text(
        json.dumps(
            {
                "type": "service_account",
                "project_id": "easel-tests",
                "private_key": pem.decode(),
                "client_email": SIGNER,
                "token_uri": "http://127.0.0.1:1/token",
            }
        )
    )
    return file
