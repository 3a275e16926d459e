"""Raises MissingExtra where the extra `train` is not installed. Packages that need PyTorch import it first."""

from importlib.util import find_spec

from isoflop.errors import MissingExtra

PACKAGES = (
    *("torch", "torchvision", "timm", "safetensors", "sklearn", "pyarrow"),
    *("simplejpeg", "PIL", "fsspec", "tensorboard"),
)

for name in PACKAGES:
    if find_spec(name) is None:
        raise MissingExtra(f"this needs {name}, which is not installed: pip install 'isoflop[train]'")
