"""Several API and worker processes beside one Redis and one S3 server of their own, any of which may be killed."""

import random
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.processes import Processes, running_processes
from tests.servers import S3Server, redis_server, s3_server

APIS, WORKERS = 2, 2


@dataclass
class Cluster:
    """Processes that come and go; `urls` are of the APIs that were alive last."""

    processes: Processes
    s3: S3Server
    objects: Path
    database_url: str
    provider_url: str
    workers: list[int] = field(default_factory=list[int])
    apis: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])

    def populate(self) -> None:
        while len(self.workers) < WORKERS:
            self.workers.append(self.processes.worker())
        while len(self.apis) < APIS:
            self.apis.append(self.processes.api())

    def kill_one(self, chance: random.Random) -> None:
        if chance.random() < 0.75:
            self.processes.kill(self.workers.pop(chance.randrange(len(self.workers))))
        else:
            self.processes.kill(self.apis.pop(chance.randrange(len(self.apis)))[0])
        self.populate()


@contextmanager
def running_cluster(database_url: str, provider_url: str, tmp_path: Path) -> Generator[Cluster]:
    with redis_server(tmp_path / "redis") as redis, s3_server(tmp_path / "s3") as s3:
        variables = {
            "DATABASE_URL": database_url,
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": provider_url,
            "REDIS_URL": redis.url,
            "EMBEDDED_WORKER": "false",
            "STORAGE_PROVIDER": "minio",
            "MINIO_ENDPOINT": s3.endpoint,
            "MINIO_ACCESS_KEY": s3.access_key,
            "MINIO_SECRET_KEY": s3.secret_key,
            "MINIO_SECURE": "false",
            "RUN_LEASE_SECONDS": "2",
            "LOG_LEVEL": "warning",
        }
        with running_processes(tmp_path / "processes", variables) as processes:
            cluster = Cluster(processes, s3, tmp_path / "s3" / "easel", database_url, provider_url)
            cluster.populate()
            yield cluster
