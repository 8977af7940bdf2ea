"""Pretrained weights come from the Hugging Face hub: here from a server on this machine that answers as it does."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

from packnet_cli.artifact import format
from packnet_cli.engine import network

REPO = "timm/test_resnet.r160_in1k"
ENCODER = "someone/encoder"
# By repository: what timm makes of its configuration, the arguments that it follows from, and the architecture.
OTHERWISE = {
    "someone/gray": ({"input_size": [1, 32, 32], "first_conv": "conv1.0"}, {"in_chans": 1}, "test_resnet"),
    "someone/small": ({"input_size": [3, 32, 32], "fixed_input_size": True}, {"img_size": [32, 32]}, "test_vit"),
    "someone/tagged": ({}, {}, "test_resnet.r160_in1k"),
}
# These say their classes, which are not in order of name, in a list or by the output's number.
NAMED = {"someone/named": ["cat", "ant", "bee"], "someone/numbered": {"2": "bee", "0": "cat", "1": "ant"}}
UNSAID = "someone/unsaid"  # its network's size follows from nothing that it says
# By repository: its configuration, and what is said of it.
REFUSED = {
    "someone/newer": ({"architecture": "newnet", "pretrained_cfg": {}}, "hf-hub:someone/newer is a newnet, which timm"),
    "someone/transformers": ({"architectures": ["ResNetForImageClassification"]}, "(KeyError: 'architecture')"),
    "someone/lacking": (
        {"architecture": "test_resnet", "pretrained_cfg": {"classifier": "fc"}},
        'ResNet: Missing key(s) in state_dict: "conv1.0.weight", ',
    ),
}


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

    for repo, (said, arguments, arch) in (OTHERWISE | {UNSAID: ({}, {"img_size": 224}, "test_vit")}).items():
        config = {"architecture": arch, "num_classes": 1000, "pretrained_cfg": said | {"num_classes": 1000}}
        config["pretrained_cfg"]["classifier"] = "head" if arch == "test_vit" else "fc"
        state = timm.create_model(arch, **arguments).state_dict()
        files[f"/{repo}/resolve/main/model.safetensors"] = save(state)
        files[f"/{repo}/resolve/main/config.json"] = json.dumps(config).encode()

    config = {"architecture": "test_resnet", "num_classes": 3, "pretrained_cfg": {"classifier": "fc"}}
    state = timm.create_model("test_resnet", num_classes=3).state_dict()
    for repo, names in NAMED.items():
        files[f"/{repo}/resolve/main/model.safetensors"] = save(state)
        files[f"/{repo}/resolve/main/config.json"] = json.dumps(config | {"label_names": names}).encode()

    for repo, (config, _) in REFUSED.items():
        files[f"/{repo}/resolve/main/model.safetensors"] = save({"fc.weight": torch.zeros(1, 1)})
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


# Several runs of `packnet init`, in one process, as importing takes long; in one of its own, as the hub's client looks
# at its environment when it is imported.
SCRIPT = """
import json, sys
from typer.testing import CliRunner
from packnet_cli.cli import app, packing

for arguments in json.loads(sys.argv[1]):
    done = CliRunner().invoke(app, ["init", *arguments])
    print(json.dumps([done.exit_code, done.stderr]))
"""


def test_init_starts_from_the_hubs_weights(tmp_path, hub):
    """As `packnet init --arch vgg16 packed.st` does, by the name of a repository, and of an encoder.

    That has no classifier: it can hold tasks, but is none.
    """
    address, weights = hub
    archs = {"test_resnet": REPO, f"hf-hub:{REPO}": REPO, f"hf-hub:{ENCODER}": ENCODER}
    files = {arch: str(tmp_path / f"{number}.st") for number, arch in enumerate(archs)}
    lines = [[file, "--arch", arch] for arch, file in files.items()]
    lines.append([str(tmp_path / "none.st"), "--arch", f"hf-hub:{ENCODER}", "--prune", "0.5"])
    lines += [[str(tmp_path / f"{repo[8:]}.st"), "--arch", f"hf-hub:{repo}"] for repo in (UNSAID, *OTHERWISE)]
    for repo in NAMED:
        line = [str(tmp_path / f"{repo[8:]}.st"), "--arch", f"hf-hub:{repo}", "--prune", "0.5", "--img-size", "32"]
        lines.append(line)
    lines += [[str(tmp_path / "none.st"), "--arch", f"hf-hub:{repo}"] for repo in REFUSED]
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
    line = [sys.executable, "-c", SCRIPT, json.dumps(lines)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = list(map(json.loads, done.stdout.splitlines()))
    (code, said), unsaid = results[len(files) : len(files) + 2]
    refused = results[-len(REFUSED) :]
    made = [*results[: len(files)], *results[len(files) + 2 : -len(REFUSED)]]
    assert [code for code, _ in made] == [0] * (len(files) + len(OTHERWISE) + len(NAMED)), made
    for arch, file in files.items():
        artifact = format.load(Path(file))
        assert archs[arch] in artifact.header.source
        for name, values in artifact.shared.items():
            assert torch.equal(torch.from_numpy(values), weights[name])
    assert code == 2 and "has no classifier of its own" in said
    assert unsaid[0] == 7 and "of another test_vit than timm" in unsaid[1]
    for repo, (_, arguments, _) in OTHERWISE.items():
        header = format.load(tmp_path / f"{repo[8:]}.st").header
        assert header.model_kwargs == arguments
        network.build(header, 2)
    for repo in NAMED:
        assert format.load_header(tmp_path / f"{repo[8:]}.st").task(1).classes == ("cat", "ant", "bee")
    for (code, said), (_, words) in zip(refused, REFUSED.values(), strict=True):
        assert code == 7 and words in said
    proxy = os.environ | {"ALL_PROXY": "socks://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "none")}
    line[-1] = json.dumps([[str(tmp_path / "none.st"), "--arch", "test_resnet"]])
    code, said = json.loads(subprocess.run(line, env=proxy, capture_output=True, text=True).stdout)
    assert code == 7 and "cannot load" in said
