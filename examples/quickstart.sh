#!/bin/sh
# Packs three tasks of handwritten digits into one network, evaluates them and takes one out again: about two minutes
# on a CPU, after an installation into .venv. PYTHON chooses the interpreter that makes .venv (default: python3).
set -eu
CDPATH='' cd -- "$(dirname -- "$0")/.."

demo=examples/demo # made anew at each run
packed=$demo/packed.st
arch=resnet10t

# Shows a command, as you would type it, and runs it.
run() {
    printf '\n$ %s\n' "$*" >&2
    "$@"
}

say() {
    printf '\n# %s\n' "$*" >&2
}

# --- installation ---------------------------------------------------------------------------------------------------

# pip takes a while even to find that nothing is to be done, so it is asked only if pyproject.toml has changed since.
installed() {
    [ -n "$(find .venv/lib/python*/site-packages/packnet_cli-*.dist-info/RECORD -newer pyproject.toml 2>/dev/null)" ] &&
        .venv/bin/python -c 'import sklearn' 2>/dev/null
}

[ -x .venv/bin/pip ] || run "${PYTHON:-python3}" -m venv .venv
installed || run .venv/bin/python -m pip install -q -e '.[demo]'

PATH=$PWD/.venv/bin:$PATH
# These images are too small to be shared out between cores: threads would spend more time on waiting than they save.
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
export PATH OMP_NUM_THREADS

# --- images ---------------------------------------------------------------------------------------------------------

rm -rf "$demo"
mkdir -p "$demo"
run python examples/digits.py "$demo/digits"

# --- one network, three tasks ---------------------------------------------------------------------------------------

# Without a network the hub's client tries again for most of a minute. One short question tells whether it is worth it;
# if nobody answers, pretrained weights can only come from the client's cache.
if ! python -c 'from huggingface_hub import constants, utils
utils.get_session().head(constants.ENDPOINT, timeout=5)' 2>/dev/null; then
    HF_HUB_OFFLINE=1
    export HF_HUB_OFFLINE
fi

status=0
run packnet init "$packed" --arch "$arch" --img-size 32 || status=$?
if [ "$status" -eq 7 ]; then # no weights to be had
    say "No pretrained weights within reach: random ones will do for digits."
    run packnet init "$packed" --arch "$arch" --img-size 32 --no-pretrained
elif [ "$status" -ne 0 ]; then
    exit "$status"
fi

# Each task is pruned so that the three end up with a third of the weights each: .67 leaves a third, half of the rest is
# another, and the last task keeps what it finds. The recipe is short, and strong enough for random weights; digits are
# not to be mirrored.
add_task() {
    run packnet add-task "$packed" --data "$demo/digits/$1" --prune "$2" \
        --opt adamw --sched cosine --epochs 8 --lr 1e-3 --retrain-epochs 5 --retrain-lr 1e-3 --hflip 0
}

add_task zero-to-three .67
packnet info "$packed" --json >"$demo/first.json" # as the first task was when it was added
add_task four-to-six .5
add_task seven-to-nine 0

run packnet eval "$packed" --task all
run packnet info "$packed"

# --- nothing is forgotten -------------------------------------------------------------------------------------------

say "Is the first task as good as when it was added?"
run packnet eval "$packed" --task zero-to-three --json >"$demo/now.json"
python - "$demo/first.json" "$demo/now.json" <<'EOT'
import json
import sys

added, now = (json.load(open(path))["tasks"][0] for path in sys.argv[1:])
if (added["top1"], added["images"]) != (now["top1"], now["images"]):
    sys.exit(f"error: {now['name']} was added with {added['top1']:.2f} % and now has {now['top1']:.2f} %")
print(f"{now['name']}: {added['top1']:.2f} % when it was added, {now['top1']:.2f} % now, two tasks later")
EOT

# --- one task on its own --------------------------------------------------------------------------------------------

run packnet extract "$packed" --task 1 -o "$demo/zero-to-three.pt"

say "The extracted file needs no packnet. In plain timm:"
cat >"$demo/classify.py" <<EOT
import sys

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

classes = ["one", "three", "two", "zero"]  # the folders, in order of name
model = timm.create_model("$arch", num_classes=4, checkpoint_path="$demo/zero-to-three.pt").eval()
transform = create_transform(**resolve_data_config({"input_size": (3, 32, 32)}, model=model))

with torch.inference_mode(), Image.open(sys.argv[1]) as image:
    probabilities = model(transform(image.convert("RGB"))[None]).softmax(1)[0]
best = int(probabilities.argmax())
print(f"{sys.argv[1]}: {classes[best]} ({100 * probabilities[best]:.1f} %)")
EOT
run cat "$demo/classify.py"
run python "$demo/classify.py" "$demo/digits/zero-to-three/val/zero/000.png"
