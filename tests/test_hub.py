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


@pytest.fixture
def hub():
    """The address of a hub with one repository, and the weights in it."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"classifier": "fc"}}
    files = {
        f"/{REPO}/resolve/main/model.safetensors": save(model.state_dict()),
        f"/{REPO}/resolve/main/config.json": json.dumps(config).encode(),
    }

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
        yield f"http://127.0.0.1:{server.server_port}", model.state_dict()
        server.shutdown()


@pytest.mark.parametrize("arch", ["test_resnet", f"hf-hub:{REPO}"])
def test_init_starts_from_the_hubs_weights(tmp_path, hub, arch):
    """As `packnet init --arch vgg16 packed.st` does, and by the name of a repository."""
    address, weights = hub
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    line = [sys.executable, "-m", "packnet_cli", "init", "--arch", arch, str(tmp_path / "packed.st")]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    artifact = format.load(tmp_path / "packed.st")
    assert REPO in artifact.header.source
    for name, values in artifact.shared.items():
        assert torch.equal(torch.from_numpy(values), weights[name])
