"""Settings that are a table of their own, as the credentials are.

Method: the real reader on a file and on variables of the test's own. Nothing is fake.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from dagnats_worker import Credentials, WorkerConfig
from dagnats_worker._settings import Sources
from dagnats_worker.errors import UsageError

FILE = """
[worker]
drain-timeout = "45s"

[worker.credentials]
creds-file = "/etc/nats.creds"
user = "file"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dagnats-worker.toml"
    path.write_text(FILE)
    return path


def read(file: Path, *options: str, **environment: str) -> Credentials:
    return Sources(options, environment, file).worker(WorkerConfig).credentials


def test_credentials_are_read_from_the_file(file: Path) -> None:
    assert read(file) == Credentials(creds_file="/etc/nats.creds", user="file")


def test_one_field_of_a_table_is_set_by_a_stronger_source(file: Path) -> None:
    found = read(
        file,
        "worker.credentials.nkey_seed=option",
        DAGNATS_WORKER__WORKER__CREDENTIALS__USER="variable",
        DAGNATS_WORKER__WORKER__CREDENTIALS__NKEY_SEED="variable",
    )
    assert (found.creds_file, found.user, found.nkey_seed) == (
        "/etc/nats.creds",
        "variable",
        "option",
    )


@pytest.mark.parametrize(
    ("variable", "complaint"),
    [
        ("CREDENTIALS__USR", "'worker.credentials' has no setting 'usr'; did you mean 'user'?"),
        ("CREDENTIALS__TLS", "is not a table; set its fields one by one"),
        ("CREDENTIALS", "is not a table; set its fields one by one"),
    ],
)
def test_wrong_part_of_a_table_is_refused_by_its_name(
    file: Path, variable: str, complaint: str
) -> None:
    name = f"DAGNATS_WORKER__WORKER__{variable}"
    with pytest.raises(UsageError) as refused:
        read(file, **{name: "x"})
    assert complaint in str(refused.value)
    assert str(refused.value).startswith(name)
