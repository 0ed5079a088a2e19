"""SIGTERM, as Slurm, Docker and Kubernetes send it: the sentence of Ctrl-C, and status 143."""

import os
import signal
import subprocess
import sys

import pytest

COMMAND = """
import signal, sys, time
# whoever runs the tests behind a shell's back ignores Ctrl-C, and so would its children
signal.signal(signal.SIGINT, signal.default_int_handler)
import megapairs_hf.cli.parser as parser
from megapairs_hf import cli

def wait():
    print("ready", flush=True)
    time.sleep(600)

def fork():
    import os
    child = os.fork()
    if child == 0:
        time.sleep(600)
    time.sleep(0.2)
    os.kill(child, 15)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return 0

parser.parse = lambda words: {"wait": wait, "fork": fork}[words[0]]
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_command_with_one_sentence(number, status):
    command = [sys.executable, "-c", COMMAND, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(number)
        _, err = run.communicate(timeout=120)
    assert (run.returncode, err) == (status, "megapairs: interrupted; the same command resumes from here\n")


def test_a_worker_that_is_ended_says_nothing():
    command = [sys.executable, "-c", COMMAND, "fork"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{-signal.SIGTERM}\n", "")
