"""A stand-in for the Hub's API on loopback: enough of it for huggingface_hub's real requests to create, upload and
commit."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

TOKEN = "hf_standin0secret0token"
SIGNATURE = "standin0signature"  # in the addresses that large files go to


class HubStandIn:
    """`files[repo][branch]` is what was published. `fail(path_part, status)` makes requests to such a path fail; status
    0 drops them."""

    def __init__(self):
        self.files: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.spaces: dict[str, str] = {}  # kind of pages of the repositories that are Spaces
        self.large: dict[str, bytes] = {}  # LFS objects by SHA-256
        self.requests: list[str] = []
        self.failures: dict[str, int] = {}
        self.xorb_bytes = 0
        self.commit_then_drop = False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def fail(self, path_part: str, status: int) -> None:
        self.failures[path_part] = status

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def _handler(hub):  # `self` is the request inside
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status: int, body: dict | list) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def handle_one(self) -> None:
                path = unquote(self.path.split("?")[0])
                hub.requests.append(f"{self.command} {path}")
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                for part, status in hub.failures.items():
                    if part in path:
                        if status == 0:
                            self.close_connection = True
                            self.connection.close()
                            return
                        return self.answer(status, {"error": f"refused for the test, {status}"})
                if path.startswith(("/api/", "/ann/")) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.answer(401, {"error": "Invalid username or password."})
                self.route(path, body)

            do_GET = do_POST = do_PUT = handle_one

            def route(self, path: str, body: bytes) -> None:
                if path == "/api/repos/create":
                    request = json.loads(body)
                    name = f"{request['organization']}/{request['name']}"
                    if name in hub.files:
                        return self.answer(
                            409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"}
                        )
                    hub.files[name], hub.private[name] = {"main": {}}, request.get("visibility") == "private"
                    if request.get("type") == "space":
                        hub.spaces[name] = request["sdk"]
                    return self.answer(200, {"url": f"{hub.url}/{name}", "name": name})
                if path == "/api/validate-yaml":
                    return self.answer(200, {"warnings": [], "errors": []})
                if path.startswith("/uploads/"):
                    hub.large[path.rpartition("/")[2]] = body
                    return self.answer(200, {})
                if path.startswith(("/v1/chunks/", "/v2/")):  # "have you this chunk already?"; the newer protocol
                    return self.answer(404, {})
                if path.startswith("/v1/xorbs/"):
                    hub.xorb_bytes += len(body)
                    return self.answer(200, {"was_inserted": True})
                if path.endswith("/shards"):
                    return self.answer(200, {"result": 1})
                if path.endswith(".git/info/lfs/objects/batch"):
                    return self.answer(200, {"objects": [self.batch(o) for o in json.loads(body)["objects"]]})
                kind, user, name, *rest = path.removeprefix("/api/").split("/")
                repo = f"{user}/{name}"
                if repo not in hub.files or (kind == "spaces") != (repo in hub.spaces):
                    return self.answer(404, {"error": "Repository not found"})
                match rest:
                    case []:
                        return self.answer(
                            200, {"id": repo, "private": hub.private[repo], "sha": "0" * 40, "siblings": [], "tags": []}
                        )
                    case ["branch", branch]:
                        if branch in hub.files[repo]:
                            return self.answer(409, {"error": "Reference already exists"})
                        hub.files[repo][branch] = {}
                        return self.answer(200, {})
                    case ["xet-write-token", _]:
                        return self.answer(
                            200, {"casUrl": hub.url, "exp": int(time.time()) + 600, "accessToken": "xet-token"}
                        )
                    case ["preupload", _]:
                        modes = [
                            {
                                "path": f["path"],
                                "uploadMode": "lfs" if f["path"].endswith((".safetensors", ".pt")) else "regular",
                            }
                            for f in json.loads(body)["files"]
                        ]
                        return self.answer(200, {"files": [{"shouldIgnore": False, **m} for m in modes]})
                    case ["commit", branch]:
                        for line in body.splitlines():
                            entry = json.loads(line)
                            value = entry["value"]
                            if entry["key"] == "file":
                                hub.files[repo][branch][value["path"]] = base64.b64decode(value["content"])
                            elif entry["key"] == "lfsFile":
                                hub.files[repo][branch][value["path"]] = hub.large.get(
                                    value["oid"], value["oid"].encode()
                                )
                        if hub.commit_then_drop:
                            self.close_connection = True
                            self.connection.close()
                            return None
                        oid = "1" * 40
                        return self.answer(200, {"commitUrl": f"{hub.url}/{repo}/commit/{oid}", "commitOid": oid})
                return self.answer(501, {"error": f"the stand-in does not know {path}"})

            @staticmethod
            def batch(item: dict) -> dict:
                if item["oid"] in hub.large:
                    return item  # no actions: the Hub has it
                address = f"{hub.url}/uploads/{item['oid']}?X-Amz-Signature={SIGNATURE}"
                return {**item, "actions": {"upload": {"href": address}}}

        return Handler
