"""What the hub may answer, by a server that answers like it: one sentence each, from diffusers' own download."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "a" * 40
INDEX = {"_class_name": "DiTPipeline", "transformer": ["diffusers", "DiTTransformer2DModel"]}
FILES = ("model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.bin")
ASK = """
import json, sys
from segquant_bench.pipelines.errors import PipelineError
from segquant_bench.pipelines.loading.files import resolve_directory, resolve_part
from segquant_bench.pipelines.config.sections import CallConfig, ModelConfig, PartConfig

def told(resolve, *arguments):
    try:
        resolve(*arguments)
    except PipelineError as error:
        return str(error)

call = CallConfig(4, 1.0, 64, 64)
found = {
    name: told(resolve_directory, ModelConfig(name="x", repo=f"some/{name}", revision=revision, call=call))
    for name, revision in (("missing", None), ("gated", None), ("pickles", None), ("whole", "nowhere"))
}
for name in ("missing", "gated"):
    part = PartConfig(kind="FluxControlNetModel", repo=f"some/{name}")
    found[f"part {name}"] = told(resolve_part, "controlnet", part)
print(json.dumps(found))
"""


class Hub(BaseHTTPRequestHandler):
    """Repositories that are missing, gated, without safetensors, without a revision."""

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        """Answer."""
        is_info, gated = self.path.startswith("/api/models/"), "some/gated" in self.path
        if "some/missing" in self.path:
            self._answer(401, {"error": "Invalid username or password."}, "RepoNotFound")
        elif "nowhere" in self.path:
            self._answer(404, {"error": "Invalid rev id: nowhere"}, "RevisionNotFound")
        elif gated and (not is_info or "/tree/" in self.path):
            self._answer(403, {"error": "Access to model is restricted."}, "GatedRepo")
        elif "/tree/" in self.path:
            self._answer(200, [{"type": "file", "path": name, "size": 1, "oid": COMMIT} for name in FILES])
        elif is_info:
            siblings = [{"rfilename": name} for name in FILES]
            self._answer(200, {"id": "some/x", "sha": COMMIT, "private": False, "siblings": siblings, "tags": []})
        else:
            self._answer(200, INDEX)

    do_HEAD = do_GET

    def _answer(self, status: int, content: object, error: str | None = None) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for key, value in {
            "Content-Type": "application/json", "Content-Length": str(len(body)), "X-Repo-Commit": COMMIT,
            "ETag": '"b"', **({"X-Error-Code": error, "X-Error-Message": error} if error else {}),
        }.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], str]]:
    """What is said of each repository, and all else on stderr."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
    }
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        environment.pop(name, None)
    finished = subprocess.run(
        [sys.executable, "-c", ASK], env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    server.shutdown()
    server.server_close()
    assert finished.returncode == 0, finished.stderr
    yield json.loads(finished.stdout.splitlines()[-1]), finished.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", ("the hub has no repository 'some/missing'", "correct model.repo", "model.path=DIRECTORY")),
        ("gated", ("some/gated is gated", "huggingface.co/some/gated", "hf auth login", "model.path=DIRECTORY")),
        ("pickles", ("some/pickles has no safetensors", ".bin", "never loaded", "model.revision")),
        ("whole", ("some/whole has no revision 'nowhere'", "model.revision", "model.path=DIRECTORY")),
        ("part missing", ("no repository 'some/missing'", "model.parts.controlnet.path=DIRECTORY")),
        ("part gated", ("some/gated is gated", "model.parts.controlnet.path=DIRECTORY")),
    ],
)
def test_what_the_hub_answers(name: str, words: tuple[str, ...], answers: tuple[dict[str, str], str]) -> None:
    for word in words:
        assert word in answers[0][name]


def test_nothing_is_said_before(answers: tuple[dict[str, str], str]) -> None:
    assert "Hub" not in answers[1] and "local cache" not in answers[1]
