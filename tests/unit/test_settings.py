"""Settings: where they come from, which is stronger, what they may be, and how mistakes are told.

Method: the real reader on options, variables and files of the test's own. Nothing is fake.
"""

from __future__ import annotations

import dataclasses
import enum
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from dagnats_worker import Client, Credentials, Plugin, UsageError, Worker, WorkerConfig
from dagnats_worker._config import Overrides, install_overrides, installed_overrides
from dagnats_worker._setting_text import setting_text
from dagnats_worker._setting_values import OptionError, variable_of
from dagnats_worker._settings import Sources

SECOND = timedelta(seconds=1)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Limits:
    burst: int = 5
    rate: float = 1.0


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    delay: timedelta = SECOND


@dataclass(frozen=True, slots=True)
class Settings:
    """One setting of each type that is promised."""

    bucket: str = "default"
    count: int = 1
    share: float = 0.5
    loud: bool = False
    delay: timedelta = SECOND
    folder: Path = Path("/tmp")  # noqa: S108 - never written to
    level: Literal["low", "high"] = "low"
    names: tuple[str, ...] = ()
    delays: tuple[timedelta, ...] = ()
    pair: tuple[str, int] = ("a", 1)
    labels: dict[str, int] = field(default_factory=dict)
    limit: int | None = None
    pause: timedelta | None = None
    mixed: int | str = 0
    colour: Colour = Colour.RED
    since: date = date(2026, 1, 1)
    limits: Limits = Limits(burst=7)
    rules: tuple[Rule, ...] = ()
    secret: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Demanding:
    address: str
    port: int = 4222


@dataclass(frozen=True, slots=True)
class Bounded:
    start: int = 1
    end: int = 2

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError(f"start {self.start} is after the end, {self.end}")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def overrides() -> Iterator[Callable[[Overrides], None]]:
    """Sets the command line of this process, and puts the one of before back."""
    before = installed_overrides()
    yield install_overrides
    install_overrides(before)


def write(text: str, name: str = "dagnats-worker.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def read(
    *options: str, file: str | None = None, environment: dict[str, str] | None = None
) -> Settings:
    """The settings of the plugin ``quiet-hours``."""
    if file is not None:
        write(f"[plugins.quiet-hours]\n{file}\n")
    return Sources(options, environment or {}).plugin("quiet-hours", Settings)


def refused(*arguments: Any, **more: Any) -> str:
    with pytest.raises(UsageError) as caught:
        read(*arguments, **more)
    text = str(caught.value)
    assert "\n" not in text
    return text


def variables(**values: str) -> dict[str, str]:
    return {f"DAGNATS_WORKER__QUIET_HOURS__{name}": text for name, text in values.items()}


# ------------------------------------------------------------------------- which is stronger


def test_command_line_is_stronger_than_environment_than_file_than_default() -> None:
    everything = {"environment": variables(BUCKET="variable"), "file": 'bucket = "file"'}
    assert read("quiet-hours.bucket=option", **everything).bucket == "option"
    assert read(**everything).bucket == "variable"
    assert read(file='bucket = "file"').bucket == "file"
    assert read(file="").bucket == "default"


def test_last_option_of_the_command_line_wins() -> None:
    assert read("quiet-hours.count=1", "quiet-hours.count=2").count == 2


def test_command_line_is_stronger_than_code_and_code_than_the_rest() -> None:
    write('[plugins.quiet-hours]\nbucket = "file"\ncount = 9')
    environment = variables(BUCKET="variable")
    made = Settings(bucket="code", count=3)
    sources = Sources(["quiet-hours.count=4", "other.count=7"], environment)
    assert sources.stronger_than_code("quiet-hours", made) == Settings(bucket="code", count=4)
    assert Sources([], environment).stronger_than_code("quiet-hours", made) is made


def test_one_field_of_a_nested_setting_of_the_code_is_changed_alone() -> None:
    made = Settings(limits=Limits(burst=9, rate=2.0))
    changed = Sources(["quiet-hours.limits.rate=3"], {}).stronger_than_code("quiet-hours", made)
    assert changed.limits == Limits(burst=9, rate=3.0)


def test_each_setting_is_taken_from_where_it_is_strongest() -> None:
    found = read("quiet-hours.count=3", environment=variables(LOUD="true"), file="share = 0.1")
    assert (found.count, found.loud, found.share, found.bucket) == (3, True, 0.1, "default")


def test_other_sections_do_not_matter() -> None:
    write('[plugins.other]\nbucket = "other"\n[worker]\ngo-ids = true')
    environment = {"DAGNATS_WORKER__OTHER__BUCKET": "x", "DAGNATS_WORKER_PLUGINS": "a"}
    assert Sources(["other.bucket=y"], environment).plugin("quiet-hours", Settings) == Settings()


def test_origin_of_each_setting_is_told() -> None:
    write('[plugins.quiet-hours]\nbucket = "x"\ncount = 1')
    sources = Sources(["quiet-hours.loud=true"], variables(COUNT="2"))
    assert sources.origins("quiet-hours") == {
        "bucket": "dagnats-worker.toml [plugins.quiet-hours]",
        "count": "DAGNATS_WORKER__QUIET_HOURS__COUNT",
        "loud": "-o quiet-hours.loud",
    }


# ------------------------------------------------------------------------- the file


def test_project_file_has_the_tables_below_tool() -> None:
    write(
        '[tool.dagnats-worker.plugins.quiet-hours]\nbucket = "project"\n'
        '[tool.dagnats-worker.worker]\ndrain-timeout = "9s"',
        "pyproject.toml",
    )
    sources = Sources([], {})
    assert sources.plugin("quiet-hours", Settings).bucket == "project"
    assert sources.worker(WorkerConfig).drain_timeout == 9 * SECOND


def test_own_file_comes_before_the_project_file() -> None:
    write('[plugins.quiet-hours]\nbucket = "own"')
    write('[tool.dagnats-worker.plugins.quiet-hours]\nbucket = "project"', "pyproject.toml")
    assert Sources([], {}).plugin("quiet-hours", Settings).bucket == "own"


@pytest.mark.parametrize("text", ["", "[tool.ruff]\nline-length = 100", "[project]\nname = 'x'"])
def test_project_file_of_a_project_that_says_nothing_of_us(text: str) -> None:
    write(text, "pyproject.toml")
    assert Sources([], {}).plugin("quiet-hours", Settings) == Settings()


def test_file_that_is_named_is_read_and_no_other(folder: Path) -> None:
    write('[plugins.quiet-hours]\nbucket = "default place"')
    other = write('[plugins.quiet-hours]\nbucket = "named"', "other.toml")
    for file in (other, str(other), folder / "other.toml"):
        assert Sources([], {}, file).plugin("quiet-hours", Settings).bucket == "named"


def test_nothing_is_read_before_it_is_needed() -> None:
    sources = Sources(["quiet-hours.count=2"], {}, "absent.toml")
    assert sources.stronger_than_code("quiet-hours", Settings()).count == 2
    with pytest.raises(UsageError, match=r"configuration file absent.toml not found"):
        sources.plugin("quiet-hours", Settings)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[worker\n", r"configuration file dagnats-worker.toml: .*line 1"),
        ("a = \xe9", r"configuration file dagnats-worker.toml: "),
        ("[workers]\nx = 1", "there is no table 'workers'; did you mean 'worker'?"),
        ("[plugin.x]\ny = 1", "there is no table 'plugin'; did you mean 'plugins'?"),
        ("bucket = 1", "there is no table 'bucket'; the tables are worker, plugins"),
        ("worker = 1", "worker is a table, got 1"),
        ("plugins = []", r"plugins is a table, got \[\]"),
        ("[plugins]\nquiet-hours = 7", "plugins.quiet-hours is a table, got 7"),
    ],
)
def test_file_that_cannot_be_read_is_told_in_one_line(text: str, says: str) -> None:
    Path("dagnats-worker.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=says) as caught:
        Sources([], {}).plugin("quiet-hours", Settings)
    assert "dagnats-worker.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_table_of_the_project_file_that_is_none_is_told() -> None:
    write("[tool]\ndagnats-worker = 1", "pyproject.toml")
    with pytest.raises(UsageError, match=r"pyproject.toml: dagnats-worker is a table, got 1"):
        Sources([], {}).worker(WorkerConfig)


def test_dashes_and_underscores_are_the_same() -> None:
    write('[plugins.quiet_hours]\nbucket = "file"\n[worker]\ndrain-timeout = "7s"\ngo_ids = true')
    assert Sources([], {}).plugin("quiet-hours", Settings).bucket == "file"
    config = Sources([], {}).worker(WorkerConfig)
    assert (config.drain_timeout, config.go_ids) == (7 * SECOND, True)
    assert Sources(["quiet_hours.count=2"], {}).plugin("quiet-hours", Settings).count == 2
    assert Sources(["worker.go-ids=on"], {}).worker(WorkerConfig).go_ids


# ------------------------------------------------------------------------- types, from text

TEXTS: list[tuple[str, str, Any]] = [
    ("bucket", "a,b = c", "a,b = c"),
    ("bucket", "", ""),
    ("count", "12", 12),
    ("count", " -3 ", -3),
    ("share", "0.25", 0.25),
    ("share", "2", 2.0),
    *(("loud", text, True) for text in ("true", "True", "yes", "on", "1")),
    *(("loud", text, False) for text in ("false", "NO", "off", "0")),
    ("delay", "500ms", timedelta(milliseconds=500)),
    ("delay", "1h30m", timedelta(minutes=90)),
    ("folder", "/var/lib", Path("/var/lib")),
    ("level", "high", "high"),
    ("names", "a, b,,c", ("a", "b", "c")),
    ("names", "", ()),
    ("delays", "1s,2m", (SECOND, timedelta(minutes=2))),
    ("pair", "x,4", ("x", 4)),
    ("labels", "a=1, b=2", {"a": 1, "b": 2}),
    ("limit", "4", 4),
    ("limit", "none", None),
    ("limit", "NULL", None),
    ("pause", "3s", 3 * SECOND),
    ("mixed", "5", 5),
    ("mixed", "five", "five"),
    ("colour", "blue", Colour.BLUE),
    ("colour", "BLUE", Colour.BLUE),
    ("since", "2026-11-24", date(2026, 11, 24)),
    ("limits.burst", "3", Limits(burst=3)),
    ("labels.b", "2", {"b": 2}),
]


@pytest.mark.parametrize(("key", "text", "value"), TEXTS)
def test_text_is_read_as_the_type_of_the_field(key: str, text: str, value: Any) -> None:
    name = key.partition(".")[0]
    variable = key.upper().replace(".", "__")
    for found in (
        read(f"quiet-hours.{key}={text}"),
        read(environment=variables(**{variable: text})),
    ):
        assert getattr(found, name) == value
        assert type(getattr(found, name)) is type(value)


def test_home_folder_is_meant_by_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert read(file='folder = "~/data"').folder == Path("/home/ada/data")


FILES: list[tuple[str, str, Any]] = [
    ("bucket", '"x"', "x"),
    ("count", "3", 3),
    ("share", "3", 3.0),
    ("loud", "true", True),
    ("delay", '"2m"', timedelta(minutes=2)),
    ("names", '["a", "b"]', ("a", "b")),
    ("delays", '["1s"]', (SECOND,)),
    ("labels", "{a = 1}", {"a": 1}),
    ("mixed", '"5"', "5"),
    ("mixed", "5", 5),
    ("colour", '"blue"', Colour.BLUE),
    ("since", "2026-11-24", date(2026, 11, 24)),
    ("limits", "{rate = 2}", Limits(burst=7, rate=2.0)),
    ("rules", '[{name = "a"}, {name = "b", delay = "3s"}]', (Rule("a"), Rule("b", 3 * SECOND))),
]


@pytest.mark.parametrize(("key", "text", "value"), FILES)
def test_file_has_values_of_its_own_types(key: str, text: str, value: Any) -> None:
    assert getattr(read(file=f"{key} = {text}"), key) == value


def test_entries_of_a_table_come_from_different_places() -> None:
    found = read(
        "quiet-hours.labels.c=3", environment=variables(LABELS__B="2"), file="labels.a = 1"
    )
    assert found.labels == {"a": 1, "b": 2, "c": 3}


def test_fields_of_a_nested_setting_come_from_different_places_and_its_default() -> None:
    assert read("quiet-hours.limits.rate=2").limits == Limits(burst=7, rate=2.0)
    found = read("quiet-hours.limits.rate=2", file="limits = {burst = 3, rate = 9}")
    assert found.limits == Limits(burst=3, rate=2.0)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(
            bucket="b", count=-4, loud=True, delay=timedelta(minutes=90), names=("x", "y"),
            delays=(SECOND,), limit=3, pause=SECOND, level="high", colour=Colour.BLUE,
        ),
    ],
)  # fmt: skip
def test_settings_written_as_text_read_back_as_the_same(settings: Settings) -> None:
    options = [
        f"quiet-hours.{one.name}={setting_text(getattr(settings, one.name))}"
        for one in dataclasses.fields(settings)
        if one.name not in ("labels", "limits", "rules") and getattr(settings, one.name) is not None
    ]
    assert read(*options) == dataclasses.replace(settings, limits=Limits(burst=7))


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("key", "text", "says"),
    [
        ("count", "three", "quiet-hours.count = 'three' is not a whole number"),
        ("count", "1.5", "is not a whole number"),
        ("share", "much", "is not a number"),
        ("loud", "maybe", "is not true or false"),
        ("delay", "45", "is not a duration: '45' has no unit; write 45s for seconds"),
        ("delay", "soon", "is not a duration"),
        ("level", "middle", "is not one of 'low', 'high'"),
        ("delays", "1s,x", "is not a duration"),
        ("pair", "x", "has not 2 members"),
        ("labels", "a", "is not a table; write it as key=value,key=value"),
        ("labels", "a=x", "is not a whole number"),
        ("limit", "few", "is not a whole number"),
        ("colour", "green", "is not one of 'red', 'blue'"),
        ("since", "yesterday", "is not a date"),
        ("limits.burst", "x", "quiet-hours.limits.burst = 'x' is not a whole number"),
    ],
)
def test_wrong_text_names_the_key_the_value_and_what_was_wanted(
    key: str, text: str, says: str
) -> None:
    assert says in refused(f"quiet-hours.{key}={text}")
    variable = key.upper().replace(".", "__")
    said = refused(environment=variables(**{variable: text}))
    assert says in said
    assert said.startswith(f"DAGNATS_WORKER__QUIET_HOURS__{variable}: ")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("count = 1.5", "count = 1.5 is not a whole number"),
        ("count = true", "is not a whole number"),
        ('count = "3"', "is not a whole number"),
        ("bucket = 3", "bucket = 3 is not a text"),
        ("loud = 1", "is not true or false"),
        ('loud = "true"', "is not true or false"),
        ("delay = 30", "delay = 30 is not a duration such as 30s"),
        ('names = "a"', "is not a list"),
        ("names = [1]", "is not a text"),
        ("labels = 1", "is not a table"),
        ("limits = 1", "limits = 1 is not a table; set its fields one by one"),
        ("limits = {brust = 1}", "has no setting 'brust'; did you mean 'burst'?"),
        ("rules = [{nam = 'a'}]", "has no setting 'nam'; did you mean 'name'?"),
        ("rules = [{delay = '1s'}]", "lacks name"),
        ("rules = [1]", "is not a table"),
        ("bucket.x = 1", "is not a text"),
    ],
)
def test_wrong_value_of_the_file_names_the_file_and_its_table(text: str, says: str) -> None:
    said = refused(file=text)
    assert says in said
    assert said.startswith("dagnats-worker.toml [plugins.quiet-hours]: ")


def test_unknown_key_names_where_it_is_and_the_closest_one() -> None:
    end = ": 'quiet-hours' has no setting 'bukcet'; did you mean 'bucket'?"
    assert refused("quiet-hours.bukcet=x") == f"-o quiet-hours.bukcet{end}"
    variable = "DAGNATS_WORKER__QUIET_HOURS__BUKCET"
    assert refused(environment={variable: "x"}) == f"{variable}{end}"
    where = "dagnats-worker.toml [plugins.quiet-hours]"
    assert refused(file='bukcet = "x"') == f"{where}{end}"


def test_unknown_key_that_is_like_none_lists_those_that_there_are() -> None:
    said = refused("quiet-hours.xyz=1")
    assert "there are bucket, count, share" in said


def test_mistake_of_a_weaker_source_is_told_too() -> None:
    assert "is not a whole number" in refused("quiet-hours.count=1", file='count = "x"')


def test_part_of_a_setting_that_has_none_is_told() -> None:
    assert "quiet-hours.bucket is not a table" in refused("quiet-hours.bucket.x=1")


def test_value_of_a_secret_is_not_shown() -> None:
    said = refused(file="secret = 1234567")
    assert "1234567" not in said
    assert "quiet-hours.secret is not a text" in said


@pytest.mark.parametrize("option", ["bucket", "bucket=x", ".bucket=x", "quiet-hours.=x", "="])
def test_option_that_is_no_setting_says_how_one_is_written(option: str) -> None:
    with pytest.raises(OptionError, match=r"write it as plugin.key=value, or worker.key=value"):
        Sources([option], {})


def test_mistake_of_the_command_line_is_told_apart() -> None:
    for wrong in ("quiet-hours.bukcet=x", "quiet-hours.count=x"):
        with pytest.raises(OptionError):
            read(wrong)
    with pytest.raises(UsageError) as caught:
        read(file="count = 'x'")
    assert not isinstance(caught.value, OptionError)


def test_setting_without_a_default_that_nobody_gave_says_how_to_give_it() -> None:
    with pytest.raises(UsageError) as caught:
        Sources([], {}).plugin("quiet-hours", Demanding)
    assert str(caught.value) == (
        "'quiet-hours' needs the setting 'address': give it as -o quiet-hours.address=..., in the "
        "variable DAGNATS_WORKER__QUIET_HOURS__ADDRESS, or in [plugins.quiet-hours] of "
        "dagnats-worker.toml"
    )
    given = Sources([], {variable_of("quiet-hours", "address"): "here"})
    assert given.plugin("quiet-hours", Demanding) == Demanding("here")


@pytest.mark.parametrize(
    ("options", "origin"),
    [(["q.start=5"], "-o q.start"), (["q.start=3", "q.end=1"], "-o q.start, -o q.end")],
)
def test_what_the_settings_themselves_refuse_says_who_has_set_it(
    options: list[str], origin: str
) -> None:
    with pytest.raises(UsageError) as caught:
        Sources(options, {}).plugin("q", Bounded)
    assert str(caught.value).startswith(f"{origin}: start ")


class NoDataclass:
    bucket: str = "x"


@dataclass(frozen=True)
class Unreadable:
    bucket: "Undefined" = None  # type: ignore[name-defined] # noqa: F821, UP037 - what is tested


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (NoDataclass, "NoDataclass is not a dataclass"),
        (Unreadable, "the types of Unreadable cannot be read: name 'Undefined' is not defined"),
    ],
)
def test_settings_type_that_cannot_be_used_is_named(kind: type[Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Sources([], {}).plugin("quiet-hours", kind)


# ------------------------------------------------------------------------- the worker's own


def test_bounds_of_the_worker_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAGNATS_WORKER__WORKER__DRAIN_TIMEOUT", "45s")
    monkeypatch.setenv("DAGNATS_WORKER__WORKER__GO_IDS", "true")
    for one in (Worker(plugins=[]), Client(plugins=[])):
        assert one.config.drain_timeout == 45 * SECOND
        assert one.config.go_ids


def test_configuration_of_the_code_is_stronger_than_environment_and_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write('[worker]\ndrain-timeout = "7s"')
    monkeypatch.setenv("DAGNATS_WORKER__WORKER__DRAIN_TIMEOUT", "45s")
    config = WorkerConfig(drain_timeout=3 * SECOND)
    assert Worker(plugins=[], config=config).config == config


def test_command_line_is_stronger_than_the_configuration_of_the_code(
    overrides: Callable[[Overrides], None],
) -> None:
    overrides(Overrides(options=("worker.drain_timeout=9s", "worker.credentials.user=ada")))
    config = WorkerConfig(
        drain_timeout=3 * SECOND, credentials=Credentials(user="b", nkey_seed="s")
    )
    found = Worker(plugins=[], config=config).config
    assert found.drain_timeout == 9 * SECOND
    assert found.credentials == Credentials(user="ada", nkey_seed="s")


@pytest.mark.parametrize("name", ["my.toml", "pyproject.toml"])
def test_configuration_is_read_from_the_file_that_the_code_names(name: str) -> None:
    top = "tool.dagnats-worker.worker" if name == "pyproject.toml" else "worker"
    path = write(f'[{top}]\ndrain-timeout = "7s"', name)
    for given in (path, str(path)):
        assert Worker(plugins=[], config=given).config.drain_timeout == 7 * SECOND
        assert Client(plugins=[], config=given).config.drain_timeout == 7 * SECOND


def test_url_of_the_command_line_is_stronger_than_the_one_in_the_code(
    overrides: Callable[[Overrides], None],
) -> None:
    overrides(Overrides(options=("worker.url=nats://line:1",)))
    assert Worker("nats://code:1", plugins=[])._connection == "nats://line:1"
    overrides(Overrides(url="nats://flag:1", options=("worker.url=nats://line:1",)))
    assert Worker("nats://code:1", plugins=[])._connection == "nats://flag:1"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("drain-timout = '1s'", "'worker' has no setting 'drain_timout'; did you mean 'drain_tim"),
        ("max_deliveries = 0", r"dagnats-worker.toml \[worker\]: max_deliveries is a whole number"),
        ("drain_timeout = '0s'", r"\[worker\]: drain_timeout is longer than zero"),
        ("credentials.usr = 'x'", "'worker.credentials' has no setting 'usr'; did you mean 'user'"),
        ("credentials.password = 1", "worker.credentials.password is not a text"),
    ],
)
def test_mistake_in_the_configuration_of_the_worker_is_told(text: str, says: str) -> None:
    write(f"[worker]\n{text}")
    with pytest.raises(UsageError, match=says):
        Worker(plugins=[]).config  # noqa: B018 - it is read when it is looked at


def test_making_a_worker_reads_nothing() -> None:
    write("[worker\n")
    worker = Worker(plugins=[])
    Client(plugins=[])
    with pytest.raises(UsageError, match=r"configuration file dagnats-worker.toml"):
        worker.handle("shout", lambda text: None)


@pytest.mark.parametrize("config", [7, {"drain_timeout": "7s"}, b"my.toml"])
def test_configuration_that_is_none_is_refused_at_the_call(config: Any) -> None:
    with pytest.raises(TypeError, match="config is a WorkerConfig or the path of a file, got"):
        Worker(plugins=[], config=config)


# ------------------------------------------------------------------------- TLS


def test_context_of_tls_is_made_from_files() -> None:
    ca = ssl.get_default_verify_paths().cafile
    if ca is None or not Path(ca).exists():
        pytest.skip("this system has no file with certificates")
    write(f'[worker.credentials]\nuser = "ada"\n[worker.credentials.tls]\nca = "{ca}"')
    found = Sources([], {}).worker(WorkerConfig).credentials
    assert found.user == "ada"
    assert isinstance(found.tls, ssl.SSLContext)


def test_file_of_tls_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"TLS__CA: worker.credentials.tls: .*No such file"):
        Sources([], {"DAGNATS_WORKER__WORKER__CREDENTIALS__TLS__CA": "/absent.pem"}).worker(
            WorkerConfig
        )


# ------------------------------------------------------------------------- of a plugin in the code


class QuietHours(Plugin[Settings]):
    name: ClassVar[str] = "quiet-hours"
    settings_type = Settings


def test_plugin_that_is_made_without_settings_reads_the_configuration(
    monkeypatch: pytest.MonkeyPatch, overrides: Callable[[Overrides], None]
) -> None:
    write('[plugins.quiet-hours]\nbucket = "file"\ncount = 4\nshare = 0.1')
    monkeypatch.setenv("DAGNATS_WORKER__QUIET_HOURS__COUNT", "5")
    overrides(Overrides(options=("quiet-hours.share=0.9",)))
    assert QuietHours().settings == Settings(bucket="file", count=5, share=0.9)
    assert QuietHours(Settings(bucket="code")).settings == Settings(bucket="code")


def test_command_line_changes_the_settings_of_a_plugin_in_the_code(
    overrides: Callable[[Overrides], None],
) -> None:
    overrides(Overrides(options=("quiet-hours.count=8",)))
    plugin = QuietHours(Settings(bucket="code", count=2))
    worker = Worker(plugins=[plugin])
    worker.handle("shout", lambda text: None)
    assert plugin.settings == Settings(bucket="code", count=8)


def test_option_for_a_plugin_that_is_not_in_the_code_is_told_of(
    overrides: Callable[[Overrides], None], caplog: pytest.LogCaptureFixture
) -> None:
    overrides(Overrides(options=("quiet-houres.count=8", "worker.go-ids=true")))
    Worker(plugins=[QuietHours()]).handle("shout", lambda text: None)
    assert caplog.messages == [
        "-o quiet-houres.count has no effect on the plugins in the code, quiet-hours"
    ]


def test_plugin_in_the_code_whose_configuration_is_wrong_is_refused_where_it_is_made() -> None:
    write("[plugins.quiet-hours]\ncount = 'x'")
    with pytest.raises(UsageError, match=r"\[plugins.quiet-hours\]: quiet-hours.count = 'x'"):
        QuietHours()
