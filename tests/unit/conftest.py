"""What several files of tests of training need."""

import pytest

from tests.training_data import arrays, write


@pytest.fixture(scope="module")
def one_thread():
    """PyTorch on one thread, for all tests of a file: `pytestmark = pytest.mark.usefixtures("one_thread")`."""
    torch = pytest.importorskip("torch", reason="training needs the extra train")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """A folder with the tiny data set of `tests.training_data`, where training looks for data sets."""
    monkeypatch.setenv("HADANET_DATA", str(tmp_path))
    write(tmp_path, arrays(count=60))
    return tmp_path
