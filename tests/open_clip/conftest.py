"""For an environment of its own (`make test-open-clip`), where torchvision is made for another build of torch.

The wheel of torchvision on the package index is compiled against a CUDA torch. Beside a CPU torch its operators cannot
be registered, and importing it fails at the first one that it names. Declaring their schemas is all that open_clip
needs.
"""

import importlib.util
from pathlib import Path

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
KEPT = []  # a library that is collected takes its schemas with it


def declare_operators():
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return
    try:
        torch.ops.load_library(str(Path(found.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        KEPT.append(library)
        for name, schema in SCHEMAS.items():
            if not hasattr(torch.ops.torchvision, name):
                library.define(schema)


declare_operators()
