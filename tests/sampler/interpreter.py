"""The Triton kernels for tests: compiled where there is a GPU, else in Triton's interpreter."""

import importlib
import sys

import pytest
import torch

pytest.importorskip("triton")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


def interpreted():
    """Import the kernels with an interpreting triton of their own, and leave no trace.

    Whether triton compiles or interprets is settled when it is imported, and other libraries may have imported it.
    """

    def loaded():
        names = [name for name in sys.modules if f"{name}.".startswith(("triton.", "dps.sampler.kernels."))]
        return [name for name in names if not name.startswith("triton._C")]  # compiled: cannot be loaded twice

    before = {name: sys.modules.pop(name) for name in loaded()}
    package = importlib.import_module("dps.sampler")
    attributes = dict(vars(package))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        kernels, interpreter = (
            importlib.import_module(name) for name in ("dps.sampler.kernels", "triton.runtime.interpreter")
        )
    for name in loaded():
        del sys.modules[name]
    sys.modules.update(before)
    del package.kernels
    vars(package).update(attributes)
    _accept_scalars_as_loop_bounds(interpreter)
    return kernels


def _accept_scalars_as_loop_bounds(interpreter):
    """NumPy 2.4 no longer turns an array of one element into an int, as triton 3.6's interpreter expects of it."""
    patch = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patched


if CUDA:
    from dps.sampler import kernels
else:
    kernels = interpreted()
