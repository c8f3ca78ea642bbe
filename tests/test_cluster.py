"""Folds on a real Dask cluster: workers that are processes of their own, and one of them killed."""
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from uuid import uuid4

import joblib
import numpy as np
import pytest
import typer
from sklearn.model_selection import GridSearchCV
from test_cli import digitrec, folder_of_digits

from digitrec import cli
from digitrec.scores import cross_validate
from digitrec.sources import load
from digitrec.svm import SVM, ImagePipeline, svm

distributed = pytest.importorskip("distributed", reason="needs Dask: digitrec[cluster]")
import dask

pytest.importorskip("keras", reason="needs Keras and an engine: digitrec[cpu], [gpu] or [tpu]")
from digitrec.ensemble import Ensemble
from digitrec.nets import build_net, seeded, variable_values
from digitrec.recipe import RECIPES
from digitrec.training import NET_JSON

TRAIN, TEST = load("digits")
FEW = TRAIN[:300]
IN_THIS_PROCESS = {"processes": False, "protocol": "tcp"}
TINY = replace(RECIPES["few"], name="tiny", epochs=1)


def start_cluster(**settings):
    "A cluster that a busy machine does not take for dead"
    limits = {f"distributed.comm.timeouts.{name}": "300s" for name in ("connect", "tcp")}
    dask.config.set(limits)
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"} | settings
    return distributed.LocalCluster(silence_logs="CRITICAL", **settings)


@pytest.fixture(scope="module")
def machines():
    "A scheduler with two workers, processes of one thread each, and a client of it"
    with start_cluster() as machines, distributed.Client(machines) as client:
        yield SimpleNamespace(client=client, address=machines.scheduler_address,
                              scheduler=machines.scheduler)


@pytest.fixture
def cluster(machines):
    "The same, when a worker that another test has killed is back"
    machines.client.wait_for_workers(2, timeout=300)
    return machines


@pytest.fixture
def on_cluster(cluster):
    "The cluster, where joblib's loops run; with one worker they would run in this process."
    with (distributed.get_task_stream(cluster.client) as stream,
          joblib.parallel_config(backend="dask")):
        yield cluster
    assert stream.data


# The same numbers as on one machine; a worker has one thread, and rounds in another order

@pytest.fixture(scope="module")
def alone():
    "An ensemble of four, trained on this machine"
    return Ensemble(TINY, k=4, verbose=False).fit(FEW.images, FEW.labels)


def test_an_ensemble_on_a_cluster_is_that_of_one_machine(alone, on_cluster, tmp_path):
    spread = Ensemble(TINY, k=4, folder=tmp_path, verbose=False).fit(FEW.images, FEW.labels)
    # with other first weights they would differ by .5
    assert np.allclose(spread.oof_, alone.oof_, atol=0.01)
    expected = alone.predict_proba(TEST.images[:50])
    assert np.allclose(spread.predict_proba(TEST.images[:50]), expected, atol=0.01)
    assert len(list(tmp_path.glob(f"*/{NET_JSON}"))) == 4


def test_folds_of_the_svm_on_a_cluster_are_those_of_one_machine(on_cluster):
    spread = cross_validate(svm(20), FEW, k=3)
    with joblib.parallel_config(backend="sequential"):
        alone = cross_validate(svm(20), FEW, k=3)
    assert np.allclose(spread.probabilities, alone.probabilities, atol=1e-3)


def test_a_search_on_a_cluster_is_that_of_one_machine(on_cluster):
    search = GridSearchCV(SVM(), {"C": [0.1, 5], "gamma": [0.001, 0.05]}, cv=3)
    spread = search.fit(FEW.flat, FEW.labels).cv_results_["mean_test_score"]
    with joblib.parallel_config(backend="sequential"):
        alone = search.fit(FEW.flat, FEW.labels).cv_results_["mean_test_score"]
    assert np.allclose(spread, alone, atol=0.01) and len(set(alone)) > 1


def test_other_threads_change_no_first_weights():
    "As those of a Dask worker do, which draw from Python's generator while a net is built"
    def first_weights():
        with seeded(1):
            return variable_values(build_net("small_net").variables)

    expected, stop, before = first_weights(), threading.Event(), random.randint

    def draw():
        while not stop.is_set():
            random.randint(1, 9)

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        found = [first_weights() for _ in range(3)]
    finally:
        stop.set()
        thread.join()
    assert all((a == b).all() for weights in found for a, b in zip(weights, expected, strict=True))
    assert random.randint is before


# A worker is killed

@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_killed_worker_costs_one_fit_of_one_fold(on_cluster, tmp_path):
    notes, killed = tmp_path / "notes", tmp_path / "killed"
    notes.mkdir()

    class Mortal(ImagePipeline):
        "Notes each fit; one of them, when three are noted, kills the process that it runs in."

        def fit(self, images, labels):
            (notes / uuid4().hex).touch()
            with suppress(FileExistsError):  # by the second who tries
                if len(list(notes.iterdir())) > 2:
                    killed.touch(exist_ok=False)
                    time.sleep(3)  # the result of the fold before arrives
                    os.kill(os.getpid(), signal.SIGKILL)
            return super().fit(images, labels)

    found = cross_validate(Mortal(svm(20).steps), FEW, k=5)
    assert len(list(notes.iterdir())) == 5 + 1
    with joblib.parallel_config(backend="sequential"):
        expected = cross_validate(svm(20), FEW, k=5)
    assert np.allclose(found.probabilities, expected.probabilities, atol=1e-3)


def kill_when(client, folder, killed):
    "Kill a worker at work as soon as a member is finished and another has begun."
    until = time.monotonic() + 300
    while not killed and time.monotonic() < until:
        finished = {path.parent for path in folder.glob(f"*/{NET_JSON}")}
        begun = {path.parent for path in folder.glob("*/state.npz")} - finished
        busy = [worker for worker, tasks in client.processing().items() if tasks]
        if finished and begun and busy:
            pid = client.run(os.getpid, workers=busy[:1])[busy[0]]
            killed.append({path: path.stat().st_mtime_ns for path in folder.glob("*/net.*")})
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_killed_worker_costs_no_finished_member(on_cluster, tmp_path):
    recipe, killed = replace(TINY, epochs=3), []
    ensemble = Ensemble(recipe, k=4, folder=tmp_path / "killed", verbose=False)
    watch = threading.Thread(target=kill_when, daemon=True,
                             args=(on_cluster.client, tmp_path / "killed", killed))
    watch.start()
    ensemble.fit(FEW.images, FEW.labels)
    watch.join(1)
    assert killed and killed[0]
    assert {path: path.stat().st_mtime_ns for path in killed[0]} == killed[0]
    on_cluster.client.wait_for_workers(2, timeout=300)
    again = Ensemble(recipe, k=4, verbose=False).fit(FEW.images, FEW.labels)
    assert np.array_equal(ensemble.oof_, again.oof_)
    assert ensemble.scores_.epochs.tolist() == [3] * 4


# The cluster is lost

def test_a_fold_that_kills_its_worker_gets_a_sentence(cluster, tmp_path, monkeypatch):
    # Dask never restarts a worker that dies while it starts, so only one that is up may die
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    die = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    with (pytest.raises(ValueError, match=r"a fold whose worker died \d times; expected workers"),
          cli._on_cluster(cluster.address, tmp_path)):
        joblib.Parallel(2)(joblib.delayed(exec)(code) for code in (die, "", ""))


def test_the_command_says_that_no_worker_is_left(tmp_path, capsys):
    with (start_cluster(**IN_THIS_PROCESS) as machines,
          cli._on_cluster(machines.scheduler_address, tmp_path)):
        machines.scale(0)
        said, until = "", time.monotonic() + 60
        while "no worker left" not in said and time.monotonic() < until:
            time.sleep(0.1)
            said += capsys.readouterr().err
    assert said.count(f"{machines.scheduler_address} has no worker left") == 1


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_a_lost_scheduler_gets_a_sentence(tmp_path):
    file = tmp_path / "scheduler.json"
    common = ["--scheduler-file", file, "--host", "127.0.0.1", "--dashboard-address", ":0"]
    worker = ["worker", *common, "--nthreads", "1", "--no-nanny"]
    processes = [
        subprocess.Popen([sys.executable, "-m", f"distributed.cli.dask_{name}", *options],
                         stderr=subprocess.DEVNULL)
        for name, *options in (["scheduler", *common, "--port", "0"], worker, worker)]
    kill = joblib.delayed(os.kill)(processes[0].pid, signal.SIGKILL)
    try:
        with distributed.Client(scheduler_file=file, timeout=300) as client:
            address = client.scheduler.address
        with (dask.config.set({"distributed.comm.timeouts.connect": "5s"}),
              pytest.raises(ValueError, match=f"--cluster {address}: lost the cluster; expected"),
              cli._on_cluster(address, tmp_path)):
            joblib.Parallel(2)([kill, joblib.delayed(time.sleep)(60)])
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_an_error_of_a_worker_gets_a_sentence(cluster, tmp_path, capsys):
    with (pytest.raises(typer.Exit), cli.one_sentence(),
          cli._on_cluster(cluster.address, tmp_path)):
        joblib.Parallel(2)(joblib.delayed(load)("/nowhere") for _ in range(2))
    assert capsys.readouterr().err.splitlines()[-1].startswith("digitrec: /nowhere: found")


# What the command asks of a cluster

@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return folder_of_digits(tmp_path_factory.mktemp("data"), True, 600)  # with fewer, nets guess


def run(data, cwd, address, *more, code=0, **env):
    "Run `digitrec run --cluster`; what it printed to standard output and to standard error."
    args = ["run", "--data", data, "--members", 2, "--cluster", address, *more]
    return digitrec(*args, cwd=cwd, code=code, **env)


def test_the_command_trains_on_a_cluster(cluster, data, tmp_path):
    with distributed.get_task_stream(cluster.client) as stream:
        printed, status = run(data, tmp_path, cluster.address)
    assert f"train on 2 workers of {cluster.address}" in status and stream.data
    assert "UserWarning" not in status  # Dask's, of large tasks
    assert printed.splitlines()[0].split(None, 1)[1] == "2 nets by the recipe few"
    assert json.loads((tmp_path / "digitrec-run/scores.json").read_text())["accuracy"] > 0.8
    assert not (tmp_path / "digitrec-run/.training").exists()


def test_without_dask_a_sentence_says_what_to_install(data, tmp_path):
    (tmp_path / "distributed.py").write_text("raise ImportError('not here')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    _, status = run(data, tmp_path, "tcp://127.0.0.1:1", code=1, PYTHONPATH=path)
    assert 'pip install "digitrec[cluster]"' in status.splitlines()[-1]


def test_a_single_recogniser_needs_no_cluster(data, tmp_path):
    _, status = run(data, tmp_path, "tcp://127.0.0.1:1", "--members", 1, code=2)
    assert "one recogniser" in status and not list(tmp_path.iterdir())


def test_an_address_without_a_scheduler_gets_a_sentence(data, tmp_path):
    _, status = run(data, tmp_path, "nowhere", code=1)
    line = status.splitlines()[-1]
    assert line.startswith("digitrec: --cluster nowhere: found no Dask scheduler")
    assert "expected the address" in line


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "", "gopher://127.0.0.1:1"])
def test_other_addresses_are_refused(address):
    with pytest.raises(ValueError, match=f"--cluster {address}: found no Dask scheduler"):
        cli._connect(address)


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-OpenSSH_9.7\r\n"])
def test_other_servers_are_refused(greeting):
    def greet():
        peer, _ = server.accept()
        peer.sendall(greeting)
        time.sleep(15)

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=greet, daemon=True).start()
        with pytest.raises(ValueError, match="found no Dask scheduler"):
            cli._connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")


@pytest.mark.parametrize("settings, found", [
    ({"threads_per_worker": 2}, "workers: 2, most threads of one: 2"),
    ({"n_workers": 1}, "workers: 1,")])
def test_other_workers_are_refused(tmp_path, settings, found):
    with (start_cluster(**IN_THIS_PROCESS | settings) as machines,
          distributed.Client(machines) as client,
          pytest.raises(ValueError, match=f"--cluster here: found {found}")):
        cli._check_workers(client, "here", tmp_path)


def test_a_worker_with_another_version_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"found at worker .*expected, as here: .*digitrec 9\.9"):
        cli._check_workers(cluster.client, "here", tmp_path)


def test_a_machine_says_whether_it_sees_a_folder(tmp_path):
    assert cli._describe_machine(__file__).endswith(f"and sees {os.path.dirname(__file__)}")
    assert f"does not see {tmp_path}" in cli._describe_machine(str(tmp_path / "nowhere"))


def test_a_worker_without_digitrec_is_refused(cluster, tmp_path):
    cluster.client.run(exec, "import sys; sys.modules['digitrec.cli'] = None")
    try:
        with pytest.raises(ValueError, match="found at worker .*ModuleNotFoundError"):
            cli._check_workers(cluster.client, "here", tmp_path)
    finally:
        cluster.client.run(exec, "import sys; del sys.modules['digitrec.cli']")
