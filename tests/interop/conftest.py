import pytest


@pytest.fixture(params=[False, True], ids=["numpy", "torch"])
def use_torch(request):
    """Whether PyTorch reads the file in place of our own reader."""
    if request.param:
        pytest.importorskip("torch", reason="PyTorch is not installed")
    return request.param
