"""``MODULE:WORKER``, and one line where there is none.

Method: modules in a folder of the test's own, which is the current one. Real: the imports. Fake:
nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dagnats_worker.cli._load import load_worker
from dagnats_worker.errors import StartError

APP = "from dagnats_worker import Worker\nworker = Worker()\n"

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into the current folder; what is imported from there is forgotten again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write_module(name: str, text: str) -> None:
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    yield write_module
    for name in set(sys.modules) - before:
        del sys.modules[name]


def refusal(target: str) -> str:
    with pytest.raises(StartError) as caught:
        load_worker(target)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_worker_is_found_by_module_and_name(write: Write) -> None:
    write("app1", APP)
    name, worker = load_worker("app1:worker")
    assert name == "app1:worker"
    assert worker is sys.modules["app1"].worker


def test_module_alone_will_do_where_it_has_one_worker(write: Write) -> None:
    write("app2", APP.replace("worker =", "mine = also_mine ="))
    assert load_worker("app2")[0] == "app2:mine"


def test_worker_inside_of_something_is_found(write: Write) -> None:
    write("app3", "from dagnats_worker import Worker\nclass Box:\n    worker = Worker()\n")
    assert load_worker("app3:Box.worker")[0] == "app3:Box.worker"


def test_module_of_a_package_is_found(write: Write) -> None:
    write("package4.__init__", "")
    write("package4.app", APP)
    assert load_worker("package4.app")[0] == "package4.app:worker"


def test_two_workers_are_both_named(write: Write) -> None:
    write("app5", APP + "other = Worker()\n")
    assert refusal("app5") == "module 'app5' has 2 workers; say which: app5:worker or app5:other"


def test_no_worker_says_how_to_make_one(write: Write) -> None:
    write("app6", "x = 1\n")
    assert refusal("app6") == "module 'app6' has no Worker; make one with `worker = Worker()`"
    assert (
        refusal("app6:worker") == "module 'app6' has no 'worker'; make one with `worker = Worker()`"
    )


def test_misspelt_worker_is_suggested(write: Write) -> None:
    write("app7", APP)
    assert refusal("app7:wroker") == "module 'app7' has no 'wroker'; did you mean 'app7:worker'?"
    assert refusal("app7:xyz") == "module 'app7' has no 'xyz'; there is 'app7:worker'"


def test_something_else_than_a_worker_is_called_what_it_is(write: Write) -> None:
    write("app8", APP + "def greet(): ...\n")
    assert refusal("app8:greet") == "app8:greet is a function, not a Worker; there is app8:worker"


def test_misspelt_module_is_suggested(write: Write, tmp_path: Path) -> None:
    write("app_nine", APP)
    expected = f"no module 'app_nien' in {tmp_path}, nor installed; did you mean 'app_nine'?"
    assert refusal("app_nien:worker") == expected


def test_misspelt_module_of_a_package_is_suggested(write: Write) -> None:
    write("package10.__init__", "")
    write("package10.tasks", APP)
    expected = (
        "no module 'package10.task' in the package 'package10'; did you mean 'package10.tasks'?"
    )
    assert refusal("package10.task") == expected


def test_module_below_a_module_is_refused(write: Write) -> None:
    write("app11", APP)
    assert "'app11' is a module, not a package" in refusal("app11.worker")


def test_missing_dependency_is_the_real_cause(write: Write) -> None:
    write("app12", "\nimport no_such_dependency\n")
    message = refusal("app12:worker")
    assert message.startswith(
        "cannot import 'app12': ModuleNotFoundError: No module named 'no_such_dependency' "
        "(app12.py, line 2); DAGNATS_WORKER_TRACEBACK=1"
    )


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero (broken.py, line 1)"),
        ("def x(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
        ("import sys\nsys.exit('no licence')", "SystemExit: no licence (broken.py, line 2)"),
        (f"{APP}worker.task('a b')(print)", "ValueError: task type 'a b' contains ' '"),
    ],
)
def test_module_that_raises_is_told_with_its_own_line(write: Write, text: str, cause: str) -> None:
    write("broken", text)
    message = refusal("broken")
    assert message.startswith(f"cannot import 'broken': {cause}")
    assert "broken.py, line" in message


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("app.py", "'app.py' is a file; name its module instead: app:worker"),
        (
            "./jobs/app.py:worker",
            "'./jobs/app.py' is a file; name its module instead: jobs.app:worker",
        ),
        ("my-app:worker", "'my-app:worker' is not MODULE:WORKER; write for example app:worker"),
        ("", "'' is not MODULE:WORKER; write for example app:worker"),
        ("app:", "'app:' names no worker after the colon; write app:worker"),
    ],
)
def test_target_that_is_no_module_is_refused_unread(target: str, message: str) -> None:
    assert refusal(target) == message
