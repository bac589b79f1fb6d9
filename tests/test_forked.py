"""A forked program behaves like one started by Python: its files, signals and exit code."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.helpers.forked import FOLDER
from tests.helpers.mpis import ROOT, available, environment
from tests.helpers.waiting import wait_until

TORCH = "import sys; print('torch' in sys.modules)"


def start(*words, **more):
    command = [next(iter(available().values())).forked, *words]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(**more.pop("env", {})),
        **more,
    )


def result_of(*words, **more):
    with start(*words, **more) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.fixture
def own_server(monkeypatch):
    """Returns the id of a server that no other test uses."""
    with tempfile.TemporaryDirectory(prefix="lsam-fork-") as folder:  # short, as names of sockets are
        monkeypatch.setenv(FOLDER, folder)

        def number():
            return int(result_of("-c", "import os; print(os.getppid())")[1])

        yield number
        os.kill(number(), signal.SIGKILL)


def test_torch_is_preloaded_unless_variables_of_its_libraries_differ():
    assert result_of("-c", TORCH) == (0, "True\n", "")
    assert result_of("-c", TORCH, env={"OMP_NUM_THREADS": "2"}) == (0, "False\n", "")
    assert result_of("-X", "dev", "-c", TORCH)[1] == "False\n"


@pytest.mark.parametrize(
    "code", ["1/0", "import sys; sys.exit(7)", "import sys; sys.exit('why')", "import os; os._exit(3)"]
)
def test_exit_code_and_output_are_those_of_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), timeout=60)
    assert result_of("-c", code) == (done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1])
def test_a_fatal_signal_gives_its_exit_code(number):
    assert result_of("-c", f"import os; os.kill(os.getpid(), {number})")[0] == -number


def test_signals_are_delivered_and_a_kill_ends_the_program():
    code = (
        "import os, signal; signal.signal(signal.SIGUSR1, lambda *_: print('seen', flush=True)); "
        "print(os.getpid(), flush=True)\nwhile True: signal.pause()"
    )
    with start("-c", code) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "seen\n"
        process.kill()
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{pid}/cmdline"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_inherited_files_keep_their_numbers_and_stay_open():
    numbers = range(3, 10)  # those that a shell can redirect
    code = f"import gc, os; gc.collect(); [os.write(n, os.read(0, 1)) for n in {[*numbers]}]; print(os.getcwd())"
    others = [start("-c", "import sys; sys.stdin.read()") for _ in range(3)]  # the server holds their files too
    try:
        files = " ".join(f"{number}>&1" for number in numbers)
        words = ["sh", "-c", f'exec {files}; exec "$@"', "sh", next(iter(available().values())).forked, "-c", code]
        done = subprocess.run(
            words, input="as it is", capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment()
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, f"as it i{ROOT}\n", "")
    finally:
        for process in others:
            process.communicate(timeout=60)


def test_the_server_survives_clients_that_are_killed_during_a_request():
    for delay in range(40):
        with start("-c", "import time; time.sleep(60)") as process:
            time.sleep(delay / 1000)  # from before it connects until its program runs
            process.kill()
    assert result_of("-c", TORCH) == (0, "True\n", "")


def test_the_server_survives_a_program_that_ends_just_before_its_client(own_server):
    server, code = own_server(), "import os, signal; print(os.getpid(), flush=True); signal.pause()"
    with start("-c", code) as process:
        program = int(process.stdout.readline())
        os.kill(server, signal.SIGSTOP)  # it learns of both ends at once
        try:
            os.kill(program, signal.SIGKILL)
            wait_until(lambda: Path(f"/proc/{program}/stat").read_text().split()[2] == "Z", "the program ends")
            process.kill()
            process.wait()
        finally:
            os.kill(server, signal.SIGCONT)
    assert result_of("-c", TORCH) == (0, "True\n", "")


def test_a_server_that_has_ended_fails_one_test_and_the_next_has_another(own_server):
    os.kill(own_server(), signal.SIGKILL)

    def use():
        for _ in range(100):  # it may answer until the kernel has ended it
            result_of("-c", "")

    with pytest.raises(AssertionError, match="the fork server ended"):
        use()
    assert result_of("-c", TORCH) == (0, "True\n", "")
