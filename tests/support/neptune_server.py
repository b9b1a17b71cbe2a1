"""A stand-in for a Neptune server on loopback: the part of its HTTP interface that neptune-client needs.

It shows that the values arrive. Of a real server's checks it has one: the steps of a series must increase, and other points
are refused.
"""

import base64
import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

Behavior = Literal["serve", "hang", "html", "missing"]

PROJECT = "workspace/project"
BACKEND = {
    "getClientConfig": "get /api/backend/v1/clients/config",
    "exchangeApiToken": "get /api/backend/v1/authorization/oauth-token",
    "getProject": "get /api/backend/v1/projects/get",
}
LEADERBOARD = {
    "createExperiment": "post /api/leaderboard/v1/experiments",
    "getExperiment": "get /api/leaderboard/v1/experiment",
    "getExperimentAttributes": "get /api/leaderboard/v1/attributes",
    "executeOperations": "post /api/leaderboard/v1/attributes/operations",
    "ping": "post /api/leaderboard/v1/attributes/ping",
    "fileAtomUpload": "post /api/leaderboard/v1/attributes/storage/file",
    "fileAtomMultipartUploadStart": "post /api/leaderboard/v1/attributes/storage/start",
    "fileAtomMultipartUploadFinish": "post /api/leaderboard/v1/attributes/storage/finish",
    "fileAtomMultipartUploadPart": "post /api/leaderboard/v1/attributes/storage/part",
}
IN_BODY = {"createExperiment": "experimentCreationParams", "executeOperations": "operations"}
IN_QUERY = {
    "getClientConfig": ["alpha"],
    "getProject": ["projectIdentifier"],
    "getExperiment": ["experimentId"],
    "getExperimentAttributes": ["experimentId"],
    "executeOperations": ["experimentId"],
    "ping": ["experimentId"],
}
HEADERS = {
    "getClientConfig": "X-Neptune-Api-Token",
    "exchangeApiToken": "X-Neptune-Api-Token",
    "createExperiment": "X-Neptune-CliVersion",
}
ATTRIBUTE_TYPES = {
    "assignFloat": "float",
    "assignInt": "int",
    "assignBool": "bool",
    "assignString": "string",
    "logFloats": "floatSeries",
    "logStrings": "stringSeries",
    "insertStrings": "stringSet",
}


def swagger(operations: dict[str, str]) -> dict[str, Any]:
    """Returns the description of an API from which the client builds its methods."""
    paths: dict[str, Any] = {}
    for name, route in operations.items():
        verb, path = route.split()
        parameters = [{"name": key, "in": "query", "type": "string"} for key in IN_QUERY.get(name, [])]
        if name in HEADERS:
            parameters.append({"name": HEADERS[name], "in": "header", "type": "string"})
        if name in IN_BODY:
            parameters.append({"name": IN_BODY[name], "in": "body", "schema": {}})
        answer = {"200": {"description": "", "schema": {}}}
        paths[path] = {verb: {"operationId": name, "tags": ["api"], "parameters": parameters, "responses": answer}}
        if name != "executeOperations":
            answer["200"]["schema"] = {"$ref": "#/definitions/Answer"}
    info = {"title": "stand-in", "version": "1"}
    return {"swagger": "2.0", "info": info, "paths": paths, "definitions": {"Answer": ANSWER}}


# The client reads its answers as attributes of objects: every name that any of them has, all of them optional.
NAMES = (
    *("apiUrl", "applicationUrl", "accessToken", "refreshToken", "id", "name", "organizationName", "projectKey"),
    *("projectName", "version", "type", "shortId", "trashed"),
)
ANSWER = {
    "type": "object",
    "properties": {
        **{name: {} for name in NAMES},
        "pyLibVersions": {"type": "object"},
        "attributes": {"type": "array", "items": {"$ref": "#/definitions/Answer"}},
    },
}


class NeptuneServer:
    """A server that lives as long as the `with` block.

    Attributes:
        url: Where it listens.
        behavior: How it answers from now on: serve, hang, HTML, or 404.
        where: The behavior applies to paths that contain this text; others are served.
        runs: Custom id of each run → its id; the id itself for a run without a custom id.
        operations: Run id → what was logged, in the order of arrival, as (path, operation, value).
        files: (run id, path) → content.
        refused: Points refused because their step did not rise, as (path, step).
        tokens: API tokens that were sent.
    """

    def __init__(self, port: int = 0) -> None:
        self.behavior: Behavior = "serve"
        self.where = ""
        self.runs: dict[str, str] = {}
        self.operations: defaultdict[str, list[tuple[str, str, Any]]] = defaultdict(list)
        self.files: dict[tuple[str, str], bytes] = {}
        self.refused: list[tuple[str, float]] = []
        self.tokens: set[str] = set()
        self.closed = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"server_state": self}))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    @property
    def token(self) -> str:
        """An API token that leads here."""
        return base64.b64encode(json.dumps({"api_address": self.url, "api_key": "top-secret"}).encode()).decode()

    def __enter__(self) -> "NeptuneServer":
        threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops listening and drops all connections."""
        if not self.closed.is_set():
            self.closed.set()
            self._http.shutdown()
            self._http.server_close()

    def values(self, run_id: str) -> dict[str, Any]:
        """Returns path → the value that was last assigned to the run."""
        return {
            path: value["value"] for path, operation, value in self.operations[run_id] if operation.startswith("assign")
        }

    def points(self, run_id: str) -> dict[str, list[tuple[float, Any]]]:
        """Returns path → [(step, value), …] of the run's series, in the order of arrival."""
        points = defaultdict(list)
        for path, operation, value in self.operations[run_id]:
            if operation.startswith("log"):
                points[path] += [(entry["step"], entry["value"]) for entry in value["entries"]]
        return dict(points)


class _Handler(BaseHTTPRequestHandler):
    server_state: NeptuneServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        state = self.server_state
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        behavior = state.behavior if state.where in url.path else "serve"
        if behavior == "hang":
            state.closed.wait()
        if state.closed.is_set():
            self.close_connection = True
        elif behavior == "html":
            self._send(200, b"<html>a proxy's page</html>", "text/html")
        elif behavior == "missing" or (answer := self._answer(url.path, query, body)) is NotImplemented:
            self._send(404, b"{}")
        else:
            self._send(200, json.dumps(answer).encode())

    do_POST = do_GET

    def _send(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _answer(self, path: str, query: dict[str, str], body: bytes) -> Any:
        state = self.server_state
        run = query.get("experimentId", "")
        names = {route.split()[1]: name for name, route in (BACKEND | LEADERBOARD).items()}
        if path == "/api/backend/swagger.json":
            return swagger(BACKEND)
        if path == "/api/leaderboard/swagger.json":
            return swagger(LEADERBOARD)
        if path.endswith("/protocol/openid-connect/token"):
            return {"access_token": self._jwt(), "refresh_token": self._jwt(), "token_type": "bearer"}
        match names.get(path):
            case "getClientConfig":
                state.tokens.add(self.headers["X-Neptune-Api-Token"])
                return {"apiUrl": state.url, "applicationUrl": state.url, "pyLibVersions": {}}
            case "exchangeApiToken":
                return {"accessToken": self._jwt(), "refreshToken": self._jwt()}
            case "getProject":
                workspace, name = PROJECT.split("/")
                project = {"name": name, "organizationName": workspace}
                return {**project, "id": "project-id", "projectKey": "P", "version": 2}
            case "createExperiment":
                new = f"00000000-0000-0000-0000-{len(state.runs):012}"
                return self._run(state.runs.setdefault(json.loads(body).get("customId") or new, new))
            case "getExperiment":
                return self._run(run) if run in state.runs.values() else NotImplemented
            case "getExperimentAttributes":
                kinds = {path: ATTRIBUTE_TYPES[operation] for path, operation, _ in state.operations[run]}
                return {"attributes": [{"name": path, "type": kind} for path, kind in kinds.items()]}
            case "executeOperations":
                return [refusal for item in json.loads(body) for refusal in self._execute(run, item)]
            case "fileAtomUpload":
                state.files[query["experimentIdentifier"], query["attribute"]] = body
                return None
            case "ping":
                return {}
        return NotImplemented

    def _execute(self, run: str, item: dict[str, Any]) -> list[dict[str, str]]:
        state = self.server_state
        path = item.pop("path")
        [(operation, value)] = item.items()
        refused = []
        if operation == "deleteAttribute":
            state.operations[run] = [done for done in state.operations[run] if done[0] != path]
            return []
        if operation.startswith("log"):
            last = max((step for step, _ in state.points(run).get(path, [])), default=-1)
            refused = [entry["step"] for entry in value["entries"] if entry["step"] <= last]
            value["entries"] = [entry for entry in value["entries"] if entry["step"] > last]
            state.refused += [(path, step) for step in refused]
        state.operations[run].append((path, operation, value))
        return [{"errorDescription": f"step {step} of {path} does not increase"} for step in refused]

    @staticmethod
    def _run(run: str) -> dict[str, Any]:
        workspace, name = PROJECT.split("/")
        short = f"P-{int(run[-12:]) + 1}"
        place = {"organizationName": workspace, "projectName": name, "trashed": False}
        return {"id": run, "type": "run", "shortId": short, **place}

    def _jwt(self) -> str:
        claims = {"exp": int(time.time()) + 3600, "azp": "client", "iss": self.server_state.url}
        parts = ({"alg": "none", "typ": "JWT"}, claims, "signature")
        return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)

    def log_message(self, *_: object) -> None:
        """Keeps the terminal clean."""
