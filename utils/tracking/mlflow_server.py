"""Serves MLflow's pages of a store on this machine, and nothing beside them.

MLflow's own command starts three processes, opens an assistant that runs commands on this machine, and a view for language
models; here its application runs in this process, its pages may speak to no other host, and open on the table of runs.
"""

import asyncio
import json
import os
import socket
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.errors import RunError
from utils.tracking.mlflow_store import ARTIFACTS, open_store, store_uri

HOST = "127.0.0.1"
FIRST_PAGE = "/runs"
STOP_SECONDS = 3
LOOK_SECONDS = 30
# MLflow's pages bring all they need; what they would fetch from elsewhere (telemetry, an editor for traces) stays away.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
HIDDEN = (
    "[data-assistant-ui]",  # the assistant's button
    '[data-component-id="mlflow.home.telemetry-alert"]',  # nothing is sent
    'div:has(> [data-component-id="mlflow.home.demo-banner.launch"])',  # runs of a language model among those trained
)
STYLE = f"<style>{', '.join(HIDDEN)} {{display: none !important}}</style>".encode()
# Colab shows a page of its machine under another name, and within its own page.
COLAB = {
    "MLFLOW_SERVER_ALLOWED_HOSTS": f"localhost,localhost:*,{HOST},{HOST}:*,*.googleusercontent.com,*.colab.dev",
    "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": "https://*.googleusercontent.com,https://*.colab.dev",
    "MLFLOW_SERVER_X_FRAME_OPTIONS": "NONE",
}
BEST = ("best_valid_acc", "best_valid_acc_epoch", "best_valid_top5_acc", "best_valid_loss", "best_train_acc")
COLUMNS = ("tags.`experiment_id`", "tags.`status`", *(f"metrics.`{name}`" for name in BEST))
CHARTS = (
    ("LINE", "Curves", ("valid_acc", "train_acc", "lr", "valid_loss", "train_loss", "valid_top5_acc")),
    ("BAR", "Best of each run", BEST),
)
AS_LOGGED = {"xAxisKey": "step", "lineSmoothness": 0, "useGlobalXaxisKey": True, "useGlobalLineSmoothing": True}


def listen(first: int) -> socket.socket:
    """Takes the first port from `first` on that no other program has.

    Raises:
        RunError: A hundred of them are taken.
    """
    for port in range(first, min(first + 100, 2**16)):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with suppress(OSError):
            listener.bind((HOST, port))
            return listener
        listener.close()
    raise RunError(f"no port from {first} on is free; name another: --port N")


def serve(
    output_path: Path,
    listener: socket.socket,
    *,
    parameters: Sequence[str],
    colab: bool,
    ready: Callable[[], None],
    look_again: Callable[[], None],
) -> None:
    """Serves the store in `output_path` until a signal ends it.

    Args:
        output_path: Folder of the store.
        listener: What `listen` returned.
        parameters: Columns of the table, behind the best metrics.
        colab: Whether a Colab notebook shows the pages.
        ready: Called as soon as they are served.
        look_again: Called every LOOK_SECONDS, in a thread.
    """
    _, experiment = open_store(output_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in open_store
        import mlflow.server
        import uvicorn
        from starlette.responses import HTMLResponse, PlainTextResponse, Response

        os.environ.update(COLAB if colab else {})
        os.environ[mlflow.server.BACKEND_STORE_URI_ENV_VAR] = store_uri(output_path)
        os.environ[mlflow.server.ARTIFACT_ROOT_ENV_VAR] = (output_path / ARTIFACTS).as_uri()
        from mlflow.server.fastapi_app import app

    first_page = _first_page(experiment, [*COLUMNS, *(f"params.`{name}`" for name in parameters)])

    @app.middleware("http")
    async def only_runs(request: Any, answer: Callable[[Any], Awaitable[Any]]) -> Any:
        if request.url.path == FIRST_PAGE:
            return HTMLResponse(first_page)
        if "/mlflow/assistant/" in request.url.path:
            return PlainTextResponse("there is no assistant", status_code=404)
        response = await answer(request)
        if request.url.path == "/":
            page = b"".join([part async for part in response.body_iterator])
            headers = {name: value for name, value in response.headers.items() if name != "content-length"}
            response = Response(page.replace(b"</head>", STYLE + b"</head>"), response.status_code, headers)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app,
        log_level="error",
        timeout_graceful_shutdown=STOP_SECONDS,
        callback_notify=lambda: asyncio.to_thread(look_again),
        timeout_notify=LOOK_SECONDS,
    )
    Server(config).run([listener])


def _first_page(experiment: str, columns: list[str]) -> str:
    """Returns the page that opens the table of runs with `columns`, unless the reader has chosen others before."""
    widths = {name: max(100, 40 + 7 * len(name.split("`")[1])) for name in columns}
    order = ["attributes.`Run Name`", "runDateAndNestInfo", "duration", *columns]
    view = {
        "selectedColumns": columns,
        "columnOrder": order,
        "columnWidths": {"attributes.`Run Name`": 230} | widths,
        "orderByKey": "metrics.`best_valid_acc`",
        "orderByAsc": False,
        "isAccordionReordered": True,
        "compareRunSections": [{"uuid": kind, "name": name, "display": True} for kind, name, _ in CHARTS],
        "compareRunCharts": [
            {"uuid": name, "metricSectionId": kind, "type": kind, "metricKey": name, "displayName": name}
            | {"scaleType": "log" if name == "lr" else "linear"}
            | AS_LOGGED
            for kind, _, names in CHARTS
            for name in names
        ],
    }
    stored = {
        f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState': json.dumps(view),
        "mlflow.workflowType_v1": '"machine_learning"',
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
        "mlflow.assistant.panelOpen_v1": "false",
    }
    return f"""<!doctype html>
<title>Runs</title>
<script>
for (const [name, value] of Object.entries({json.dumps(stored)}))
  if (localStorage.getItem(name) === null) localStorage.setItem(name, value);
location.replace("./#/experiments/{experiment}/runs?workflowType=machine_learning");
</script>
"""
