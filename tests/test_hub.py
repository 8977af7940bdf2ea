"""Pretrained weights come from the Hugging Face hub: here from a server on this machine that answers as it does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from safetensors.torch import save

from packnet_cli.artifact import format

REPO = "timm/test_resnet.r160_in1k"
ENCODER = "someone/encoder"


@pytest.fixture
def hub():
    """The address of a hub with a classifier and an encoder, and the weights of both."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")
    weights = model.state_dict()
    body = {name: value for name, value in weights.items() if not name.startswith("fc.")}
    files = {}
    for repo, state, classes in ((REPO, weights, 1000), (ENCODER, body, 0)):
        config = {"architecture": "test_resnet", "num_classes": classes, "pretrained_cfg": {"classifier": "fc"}}
        config["model_args"] = {"num_classes": classes}  # which is not for a file
        files[f"/{repo}/resolve/main/model.safetensors"] = save(state)
        files[f"/{repo}/resolve/main/config.json"] = json.dumps(config).encode()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            data = files.get(self.path, b"")
            self.send_response(200 if data else 404)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()
            return data

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", weights
        server.shutdown()


def init(folder, hub, *arguments):
    """`packnet init`, for which this hub is the only one."""
    environment = os.environ | {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    line = [sys.executable, "-m", "packnet_cli", "init", str(folder / "packed.st"), *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "arch, repo", [("test_resnet", REPO), (f"hf-hub:{REPO}", REPO), (f"hf-hub:{ENCODER}", ENCODER)]
)
def test_init_starts_from_the_hubs_weights(tmp_path, hub, arch, repo):
    """As `packnet init --arch vgg16 packed.st` does, by the name of a repository, and of one without a classifier."""
    address, weights = hub
    done = init(tmp_path, address, "--arch", arch)
    assert done.returncode == 0, done.stderr
    artifact = format.load(tmp_path / "packed.st")
    assert repo in artifact.header.source
    for name, values in artifact.shared.items():
        assert torch.equal(torch.from_numpy(values), weights[name])


def test_an_encoder_has_no_classifier_to_keep(tmp_path, hub):
    """It can hold tasks, but is none."""
    done = init(tmp_path, hub[0], "--arch", f"hf-hub:{ENCODER}", "--prune", "0.5")
    assert done.returncode == 2 and "has no classifier of its own" in done.stderr
