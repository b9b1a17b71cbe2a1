"""Tokens: no message and no byte that a command writes or logs contains one."""

import base64
import gzip
import importlib.util
import json
import logging
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from models.classifier import Classifier
from tests.support.data_sets import write_updated_release
from tests.support.neptune_server import PROJECT as NEPTUNE_PROJECT
from tests.support.neptune_server import NeptuneServer
from tests.support.small_runs import only_run
from tests.support.small_runs import run as small_run
from utils.cli import run_command, set_options
from utils.config import load_config, load_run_config
from utils.errors import ConfigError, RunError
from utils.logs import log_to_file, start_logging, without_secrets
from utils.machine import PROJECT
from utils.runs.folder import read_record

WANDB_KEY = "0123canary0123canary0123canary0123canary"
CANARY = "canary-4f1d0c9b7a"


class Server(NeptuneServer):
    """Its token contains the canary."""

    @property
    def token(self) -> str:
        return base64.b64encode(json.dumps({"api_address": self.url, "api_key": CANARY}).encode()).decode()


def spellings(secret: str) -> set[bytes]:
    """Returns the encodings in which a file could contain a secret."""
    encoded = base64.b64encode(secret.encode()).decode()
    texts = {secret, encoded.rstrip("="), quote(secret, safe=""), json.dumps(secret)[1:-1], secret.encode().hex()}
    return {text.encode() for text in texts} | {secret.encode("utf-16-le")}


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Yields all file names and contents, also those within zip archives such as checkpoints."""
    for path in sorted(folder.rglob("*")):
        yield f"the name of {path}", str(path).encode()
        if not path.is_file():
            continue
        yield str(path), path.read_bytes()
        if path.read_bytes().startswith(b"\x1f\x8b"):
            yield f"{path}, unpacked", gzip.decompress(path.read_bytes())
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                yield from ((f"{path}, its {name}", archive.read(name)) for name in archive.namelist())


def assert_nowhere(secrets: tuple[str, ...], places: Iterator[tuple[str, bytes]]) -> list[str]:
    checked = []
    for place, content in places:
        checked.append(place)
        for secret in secrets:
            assert not any(spelling in content for spelling in spellings(secret)), place
    return checked


def train(folder: Path, *changes: str, config: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Trains for an epoch on a few images, in a process with this environment only."""
    (folder / "mine.yml").write_text(config)
    settings = [
        "architecture=sq_11", "out_channels=null", "image_size=[32, 32]", "batch_size=4", "num_epochs=1", "num_workers=0",
        "accelerator=cpu", "cache_path=null", "trackers=[mlflow, tensorboard]", "log_to_neptune=True", "loglevel=DEBUG",
        f"output_path={folder / 'output'}", f"logging_dir={folder / 'logs'}", *changes,
    ]  # fmt: skip
    command = [
        sys.executable,
        str(PROJECT / "train.py"),
        "--config",
        str(folder / "mine.yml"),
        "-d",
        str(folder / "data"),
    ]
    own = {"OAUTHLIB_INSECURE_TRANSPORT": "1", "NEPTUNE_RETRIES_TIMEOUT": "1", "OMP_NUM_THREADS": "1"}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("NEPTUNE", "WANDB"))}
    done = subprocess.run(
        [*command, *set_options(settings)],
        cwd=folder, env=plain | own | environment, capture_output=True, timeout=300,
    )  # fmt: skip
    (folder / "mine.yml").unlink()  # the user's own file
    return done


def both_names(server: NeptuneServer) -> tuple[str, str]:
    workspace, name = NEPTUNE_PROJECT.split("/")
    return f"neptune_username={workspace}", f"neptune_project_name={name}"


@pytest.fixture
def folder(tmp_path) -> Path:
    write_updated_release(tmp_path / "data", train_per_class=2, valid_per_class=1, image_sizes=[(40, 32)])
    return tmp_path


@pytest.mark.slow
def test_a_completed_run_that_logs_to_a_server_writes_no_token(folder):
    with Server() as server:
        secrets = (server.token, CANARY, WANDB_KEY)
        names = both_names(server)
        done = train(folder, *names, NEPTUNE_API_TOKEN=server.token, WANDB_API_KEY=WANDB_KEY)
        assert done.returncode == 0, done.stderr.decode()
        assert server.token in server.tokens and server.runs  # it has logged there
        logged = json.dumps([server.operations, server.runs]).encode()
        sent = [("what was logged", logged), *((str(name), content) for name, content in server.files.items())]
    output = [("its output", done.stdout + done.stderr)]
    checked = assert_nowhere(secrets, iter([*sent, *output, *contents(folder)]))
    for part in ("mlflow.db", "events.out.tfevents", "best.ckpt, its ", ".log", "run.json", "config.yml"):
        assert any(part in place for place in checked), (part, checked)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["environment", "configuration"])
def test_a_failed_run_that_logs_offline_writes_no_token(folder, where):
    photo = sorted((folder / "data").glob("car_ims/*.jpg"))[0]
    photo.write_bytes(photo.read_bytes()[:-200])
    with Server() as server:
        server.behavior = "missing"
        secrets = (server.token, CANARY)
        names = both_names(server)
        config = f"neptune_api_token: {server.token}\n" if where == "configuration" else ""
        environment = {} if config else {"NEPTUNE_API_TOKEN": server.token}
        done = train(folder, *names, config=config, **environment)
    assert done.returncode == 2 and b"cannot be decoded" in done.stderr and b"neptune: offline" in done.stderr
    assert_nowhere(secrets, iter([("its output", done.stdout + done.stderr), *contents(folder)]))


def test_the_error_of_a_wrong_key_shows_no_token(folder):
    done = train(folder, config=f"neptune_api_token: {CANARY}\nneptune_usernam: me\nbatch_size: x\n")
    assert done.returncode == 2 and b"Did you mean 'neptune_username'" in done.stderr
    assert_nowhere((CANARY,), iter([("its output", done.stdout + done.stderr), *contents(folder)]))


@pytest.mark.parametrize(
    "text",
    [
        f"neptune_api_token: [{CANARY}]",
        f"neptune_api_token: {{a: {CANARY}}}",
        f"neptune_api_token.x: {CANARY}",
        f"neptune_api_tokn: {CANARY}",
        f"neptune_api_tokn: [{CANARY}]",
        f"NEPTUNE_API_TOKEN: {CANARY}",
        f"neptune_api_token: {CANARY}\nneptune_api_token: {CANARY}",
        f"neptune_api_token: {CANARY}\nseed: [",
        f"neptune_api_token: !{CANARY}",
        f"neptune_api_token: *{CANARY}",
        f'neptune_api_token: "{CANARY}\\0"',
        f"neptune_api_token: !!int {CANARY}",
        f"neptune_api_token: !!binary {CANARY}",
        "neptune_api_token: 123456789012345678901234567890",
    ],
)
def test_no_message_about_a_configuration_shows_a_token(tmp_path, text):
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "mine.yml")
    assert CANARY not in str(caught.value) and "1234567890" not in str(caught.value)


@pytest.mark.parametrize("override", [f"neptune_api_token=[{CANARY}]", f"neptune_api_token={CANARY}: ["])
def test_no_message_about_the_command_line_shows_a_token(tmp_path, override):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert CANARY not in str(caught.value)
    (tmp_path / "config.yml").write_text(load_config().as_yaml())
    with pytest.raises(ConfigError) as caught:
        load_run_config(tmp_path, overrides=[override])
    assert CANARY not in str(caught.value)


def test_a_printed_configuration_shows_no_token():
    config = load_config(overrides=[f"neptune_api_token={CANARY}"])
    for text in (repr(config), str(config), config.as_yaml(), str(config.plain())):
        assert CANARY not in text


def test_no_log_message_shows_a_token_of_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    start_logging("DEBUG")
    log_to_file(tmp_path / "train.log")
    try:
        raise ValueError(f"refused: {WANDB_KEY}")
    except ValueError:
        logging.getLogger("some.library").exception("sent %s", {"key": WANDB_KEY})
    printed = capsys.readouterr().err
    start_logging("WARNING")  # closes the file
    for text in (printed, (tmp_path / "train.log").read_text()):
        assert "sent" in text and "refused" in text and WANDB_KEY not in text


@pytest.mark.slow
def test_an_error_is_printed_and_recorded_without_its_token(cars, tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise RunError(f"refused: {WANDB_KEY}")

    monkeypatch.setenv("WANDB_API_KEY", WANDB_KEY)
    monkeypatch.setattr(Classifier, "training_step", refused)
    tracker = "[mlflow]" if importlib.util.find_spec("mlflow") else "[]"
    assert run_command(lambda _: small_run(cars, tmp_path / "output", f"trackers={tracker}")) == 1
    printed = capsys.readouterr().err
    assert "error: refused: <WANDB_API_KEY>" in printed
    start_logging("WARNING")  # closes the file
    assert "RunError: refused: <WANDB_API_KEY>" in read_record(only_run(tmp_path / "output"))["error"]
    checked = assert_nowhere((WANDB_KEY,), iter([("its output", printed.encode()), *contents(tmp_path / "output")]))
    assert tracker == "[]" or any("mlflow.db" in place for place in checked)


def test_a_token_in_the_place_of_a_user_is_a_secret_and_a_user_with_a_password_is_not(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://{CANARY}@tracking.test/x")
    assert without_secrets(f"no answer of https://{CANARY}@tracking.test") == (
        "no answer of https://<MLFLOW_TRACKING_URI>@tracking.test"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://anna:{CANARY}@tracking.test/x")
    assert without_secrets(f"anna:{CANARY}") == "anna:<MLFLOW_TRACKING_URI>"


def test_an_address_that_is_none_hides_no_message(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://[::1:5000/{CANARY}")
    assert without_secrets("no such file") == "no such file"
    assert CANARY not in without_secrets(f"http://[::1:5000/{CANARY} is no address")
