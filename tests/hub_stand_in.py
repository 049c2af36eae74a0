"""A stand-in of the Hugging Face hub on loopback: repositories of small files, behind the real client."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants as constants

import dps.hub


class Hub:
    """Repositories by name; each has its commits, by hash, in order: the files with their bytes."""

    def __init__(self):
        self.repositories = {}
        self.asked = []
        self.private = set()
        self.gated = set()

    def commit(self, name, files):
        commits = self.repositories.setdefault(name, {})
        files = {**(list(commits.values()) or [{}])[-1], **files}
        oid = hashlib.sha1(repr((name, len(commits), sorted(files.items()))).encode()).hexdigest()
        commits[oid] = files
        return oid

    def at(self, name, revision):
        commits = self.repositories[name]
        oid = list(commits)[-1] if revision == "main" else revision
        return (oid, commits[oid]) if oid in commits else (None, None)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, value, status=200, **headers):
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(text))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code):
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self):
        hub, path = self.server.hub, [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        hub.asked.append(self.command + " " + self.path)
        if path == [""]:
            return self.answer({})
        at = path.index("resolve") - 2 if "resolve" in path else 2
        name = "/".join(path[at : at + 2])
        if name not in hub.repositories or (name in hub.private and "authorization" not in self.headers):
            return self.refuse(401, "RepoNotFound")
        if name in hub.gated and "resolve" in path:
            return self.refuse(403, "GatedRepo")
        rest = path[at + 2 :]
        oid, files = hub.at(name, rest[1] if len(rest) > 1 else "main")
        if oid is None:
            return self.refuse(404, "RevisionNotFound")
        if rest[:1] == ["resolve"]:
            content = files["/".join(rest[2:])]
            etag = hashlib.sha1(content).hexdigest()
            return self.answer(content, X_Repo_Commit=oid, ETag=f'"{etag}"')
        if rest[:1] == ["tree"]:
            kinds = {"type": "file", "oid": "0" * 40}
            return self.answer([{"path": file, "size": len(content), **kinds} for file, content in files.items()])
        siblings = [{"rfilename": file, "size": len(content)} for file, content in files.items()]
        gated = "manual" if name in hub.gated else False
        return self.answer({"id": name, "sha": oid, "siblings": siblings, "gated": gated})

    do_HEAD = do_GET

    def do_POST(self):
        hub, path = self.server.hub, urlsplit(self.path).path.strip("/").split("/")
        hub.asked.append("POST " + self.path)
        lines = self.rfile.read(int(self.headers["Content-Length"])).decode().splitlines()
        if path[-1] == "validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if self.headers.get("authorization") != "Bearer right":
            return self.refuse(401, "Unauthorized")
        if path[-1] == "create":
            asked = json.loads(lines[0])
            name = f"{asked['organization']}/{asked['name']}"
            if asked.get("visibility") == "private" or asked.get("private"):
                hub.private.add(name)
            if name in hub.repositories:
                return self.answer(
                    {"error": "You already created this model repo", "url": f"{constants.ENDPOINT}/{name}"}, 409
                )
            hub.commit(name, {".gitattributes": b""})
            return self.answer({"url": f"{constants.ENDPOINT}/{name}"})
        name = "/".join(path[2:4])
        if path[4] == "preupload":
            files = [file["path"] for file in json.loads(lines[0])["files"]]
            upload = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer({"files": [{"path": file, **upload} for file in files]})
        sent = [line["value"] for line in map(json.loads, lines) if line["key"] == "file"]
        oid = hub.commit(name, {each["path"]: base64.b64decode(each["content"]) for each in sent})
        return self.answer({"commitUrl": f"{constants.ENDPOINT}/{name}/commit/{oid}", "commitOid": oid})


@contextmanager
def local_hub(monkeypatch, cache, token=None):
    """Let the hub's client talk to a stand-in; yields that."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.hub = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN", raising=False)
    forget()
    try:
        yield server.hub
    finally:
        server.shutdown()
        server.server_close()
        forget()


def forget():
    """Forget what a process asks the hub once."""
    dps.hub.hub_answers.cache_clear()
    dps.hub._fetched.cache_clear()
