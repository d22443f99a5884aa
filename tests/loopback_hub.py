"""A Hub on this machine, over HTTP: what `huggingface_hub` asks of the real one to create, fill and read a model.

Strict: a request that it does not know fails, and is remembered in `unknown`. Files ending in `.safetensors` go
through LFS. It can be told to break a connection in the middle, to gate a repository and to take rights away.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

OWNER, READER = "hf_owner", "hf_reader"
ATTRIBUTES = ".gitattributes"


@dataclass
class Repository:
    """A model: commits from the first to the newest, each the content of its files by path."""

    private: bool = False
    gated: bool = False
    commits: list = field(default_factory=list)
    messages: list = field(default_factory=list)

    def commit(self, files, message):
        files = dict(files)
        digest = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits.append((digest, files))
        self.messages.append(message)
        return digest

    def at(self, revision):
        """The commit of a branch or its number, or `None`."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class LoopbackHub:
    """The server. `OWNER` may write to `user/...`, `READER` only reads what is public."""

    def __init__(self):
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.clear()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def clear(self):
        self.repositories, self.large, self.requests, self.unknown = {}, {}, [], []
        self.broken = self.lost = None

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def break_at(self, request):
        """Close the connection in the middle of every request that this pattern is found in; `None` repairs it."""
        self.broken = request

    def lose(self, request):
        """Do what every request asks that this pattern is found in, and close the connection without an answer."""
        self.lost = request

    def files(self, repo):
        """The newest content of a repository, without what the Hub puts there."""
        return {
            name: content for name, content in self.repositories[repo].commits[-1][1].items() if name != ATTRIBUTES
        }

    def put(self, repo, files, **fields):
        """A repository that is there already."""
        made = self.repositories[repo] = Repository(**fields)
        made.commit({ATTRIBUTES: b"*.safetensors filter=lfs\n"}, "initial commit")
        made.commit({**made.commits[-1][1], **files}, "by somebody")
        return made


class Refusal(Exception):
    """An answer that is no success."""

    def __init__(self, status, code=None, message=None, **more):
        self.status, self.more = status, more
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


def is_large(name):
    return name.endswith(".safetensors")


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """One connection. Routes are methods, found by the pattern that they are listed with."""

    protocol_version = "HTTP/1.1"
    routes = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", r"/api/models", "list_models"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)", "info"),
        ("GET", r"/api/models/(?P<repo>[^/]+/[^/]+)/tree/(?P<revision>[^/]+)(?:/(?P<path>.*))?", "tree"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", r"/api/models/(?P<repo>[^/]+/[^/]+)/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", r"/(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("PUT", r"/lfs/(?P<digest>[0-9a-f]{64})", "upload"),
        ("GET", r"/lfs/(?P<digest>[0-9a-f]{64})", "download"),
        ("HEAD", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
        ("GET", r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def do_GET(self):
        hub, address = self.server.hub, urlsplit(self.path)
        request = f"{self.command} {unquote(address.path)}"
        hub.requests.append(request)
        self.query = parse_qs(address.query)
        size = int(self.headers.get("Content-Length") or 0)
        if hub.broken and re.search(hub.broken, request):
            self.rfile.read(size // 2)
            self.close_connection = True
            return
        self.body = (
            self.rfile.read(size)
            if size or "chunked" not in self.headers.get("Transfer-Encoding", "")
            else (self.chunks())
        )
        try:
            self.authorize()
            for command, pattern, name in self.routes:
                found = re.fullmatch(pattern, address.path)
                if command == self.command and found:
                    return getattr(self, name)(**{k: unquote(v) for k, v in found.groupdict().items() if v})
            hub.unknown.append(request)
            raise Refusal(501)
        except Refusal as refusal:
            self.answer({"error": str(refusal.headers), **refusal.more}, refusal.status, refusal.headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def log_message(self, *args):
        pass

    def answer(self, content, status=200, headers=None):
        if self.server.hub.lost and re.search(self.server.hub.lost, self.server.hub.requests[-1]):
            self.close_connection = True
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(body), **(headers or {})}.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def authorize(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        if token not in (None, OWNER, READER):
            raise Refusal(401, message="Invalid credentials in Authorization header")
        self.token = token

    def repository(self, repo, write=False):
        found = self.server.hub.repositories.get(repo)
        if found is None or (found.private and self.token != OWNER):
            raise Refusal(404 if self.token else 401, "RepoNotFound", "Repository not found")
        if write and (self.token != OWNER or not repo.startswith("user/")):
            raise Refusal(403, message="Authorization error")
        return found

    def state(self, repo, revision):
        found = self.repository(repo).at(revision)
        if found is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    def whoami(self):
        if self.token is None:
            raise Refusal(401)
        self.answer({"name": "user" if self.token == OWNER else "reader", "type": "user"})

    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked['organization'] or 'user'}/{asked['name']}"
        if not repo.startswith("user/") or self.token != OWNER:
            raise Refusal(403 if self.token else 401, message="You don't have the rights to create a model there")
        if repo in self.server.hub.repositories:
            raise Refusal(409, message="You already created this model repo", url=f"{self.server.hub.url}/{repo}")
        made = self.server.hub.repositories[repo] = Repository(
            private=bool(asked.get("visibility") == "private" or asked.get("private"))
        )
        made.commit({ATTRIBUTES: b"*.safetensors filter=lfs\n"}, "initial commit")
        self.answer({"url": f"{self.server.hub.url}/{repo}"})

    def validate(self):
        content = json.loads(self.body)["content"]
        data = yaml.safe_load(re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)[1])
        errors = [{"message": "no tags"}] if not isinstance(data.get("tags"), list) else []
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                if not {"task", "dataset", "metrics"} <= result.keys() or "type" not in result["task"]:
                    errors.append({"message": "a result must have a task, a dataset and metrics"})
        self.answer({"errors": errors, "warnings": []}, 400 if errors else 200)

    def list_models(self):
        wanted = set(self.query.get("filter", []))
        found = []
        for repo, repository in self.server.hub.repositories.items():
            card = repository.commits[-1][1].get("README.md", b"").decode()
            matter = re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)
            tags = yaml.safe_load(matter[1]).get("tags", []) if matter else []
            if wanted <= set(tags) and not repository.private:
                found.append({"id": repo, "modelId": repo, "private": False, "tags": tags, "downloads": 0, "likes": 0})
        self.answer(found)

    def info(self, repo, revision="main"):
        (digest, files), found = self.state(repo, revision), self.repository(repo)
        siblings = [
            {"rfilename": name, "size": len(content), **self.digests(name, content)} for name, content in files.items()
        ]
        self.answer(
            {"id": repo, "modelId": repo, "sha": digest, "private": found.private, "tags": [], "siblings": siblings}
        )

    def digests(self, name, content):
        lfs = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
        return {"blobId": blob_id(content), **({"lfs": lfs} if is_large(name) else {})}

    def tree(self, repo, revision, path=""):
        _, files = self.state(repo, revision)
        listed = [
            {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}
            | ({"lfs": {"oid": sha256(content), "size": len(content), "pointerSize": 134}} if is_large(name) else {})
            for name, content in files.items()
            if name.startswith(path)
        ]
        if path and not listed:
            raise Refusal(404, "EntryNotFound")
        self.answer(listed)

    def preupload(self, repo, revision):
        files = self.repository(repo, write=True).at(revision)[1]
        self.answer(
            {
                "files": [
                    {
                        "path": one["path"],
                        "uploadMode": "lfs" if is_large(one["path"]) else "regular",
                        "shouldIgnore": False,
                        "oid": blob_id(files[one["path"]]) if one["path"] in files else None,
                    }
                    for one in json.loads(self.body)["files"]
                ]
            }
        )

    def batch(self, repo):
        self.repository(repo, write=True)
        objects = []
        for one in json.loads(self.body)["objects"]:
            wanted = {"actions": {"upload": {"href": f"{self.server.hub.url}/lfs/{one['oid']}"}}}
            objects.append({**one, **({} if one["oid"] in self.server.hub.large else wanted)})
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, digest):
        if sha256(self.body) != digest:
            raise Refusal(400)
        self.server.hub.large[digest] = self.body
        self.answer({})

    def commit(self, repo, revision):
        repository = self.repository(repo, write=True)
        newest, files = repository.at(revision)
        head, *changes = [json.loads(line) for line in self.body.splitlines()]
        if head["value"].get("parentCommit") not in (None, newest):
            raise Refusal(412, message="The repository has changed")
        files = dict(files)
        for change in changes:
            kind, value = change["key"], change["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.server.hub.large[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(501)
        digest = repository.commit(files, head["value"]["summary"])
        self.answer(
            {"commitOid": digest, "commitUrl": f"{self.server.hub.url}/{repo}/commit/{digest}", "success": True}
        )

    def resolve(self, repo, revision, path):
        digest, files = self.state(repo, revision)
        if self.repository(repo).gated and self.token != OWNER:
            raise Refusal(403 if self.token else 401, "GatedRepo", f"Access to model {repo} is restricted")
        if path not in files:
            raise Refusal(404, "EntryNotFound", "Entry not found") if path else Refusal(404)
        content = files[path]
        headers = {"X-Repo-Commit": digest, "ETag": f'"{blob_id(content)}"', "Accept-Ranges": "bytes"}
        if is_large(path):
            large = sha256(content)
            headers |= {"X-Linked-Size": len(content), "X-Linked-ETag": f'"{large}"'}
            # Large files are on another host, which needs no token.
            headers |= {"Location": f"http://localhost:{self.server.server_port}/lfs/{large}"}
            return self.answer(b"", 302, headers)
        self.part(content, headers)

    def download(self, digest):
        self.part(self.server.hub.large[digest], {"ETag": f'"{digest}"'})

    def part(self, content, headers):
        """All of a file, or what is missing of a download that broke off."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self.answer(content, 200, headers)
        start, end = int(asked[1]), int(asked[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.answer(content[start : end + 1], 206, headers)
