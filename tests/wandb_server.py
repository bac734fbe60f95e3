"""A stand-in for W&B's server on localhost: enough of its interface for a run to begin, log, and be synced."""

import gzip
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


class Server(ThreadingHTTPServer):
    """Remembers the lines of history, the configuration and the files that it was sent."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.history, self.config, self.files = [], {}, {}
        self.groups, self.projects, self.tags = set(), set(), set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments):
        pass

    def answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        if self.command == "PUT":
            self.server.files[self.path.removeprefix("/upload/")] = body
            return {}
        message = json.loads(body or b"{}") if self.path.startswith(("/graphql", "/files")) else {}
        if self.path.startswith("/files"):
            for chunk in message.get("files", {}).get("wandb-history.jsonl", {}).get("content", []):
                self.server.history.append(json.loads(chunk))
            return {}
        return {"data": self.graphql(message.get("query", ""), message.get("variables") or {})}

    def graphql(self, query, variables):
        if "upsertBucket" in query:
            if variables.get("config"):
                self.server.config |= {k: v["value"] for k, v in json.loads(variables["config"]).items()}
            self.server.groups.add(variables.get("groupName"))
            self.server.projects.add(variables.get("project"))
            self.server.tags |= set(variables.get("tags") or ())
            project = {"id": "p", "name": variables.get("project"), "entity": {"id": "e", "name": "me"}}
            bucket = {"id": "b", "name": variables.get("name"), "historyLineCount": 0, "project": project}
            return {"upsertBucket": {"bucket": bucket, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.server.url}/upload/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}
        if "viewer" in query:
            return {"viewer": {"id": "u", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}}
        return {}

    def reply(self):
        content = json.dumps(self.answer()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = reply


@contextmanager
def wandb_server():
    """Serve for the time of the body, which may stop it before."""
    server = Server()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
